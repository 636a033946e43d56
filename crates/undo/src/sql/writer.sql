-- The undo engine's hands: what it does to the tenant's tables is done as loomworks_writer, because it runs what the
-- tenant has written, and that is to reach nothing else.

-- Whoever runs in such a statement can change the search path for what comes after it, as somebody else. The name is
-- qualified in full, since it may have been changed already.
CREATE OR REPLACE FUNCTION loomworks.check_path() RETURNS void
    LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.<>) 'pg_catalog, pg_temp' THEN
        RAISE EXCEPTION 'loomworks: code of a table has changed the search path' USING ERRCODE = 'LW001',
            HINT = 'Constraints, defaults and casts may not: write SET search_path into the function instead.';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION loomworks.write(statement text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE statement;
    PERFORM loomworks.check_path();
END $$;
ALTER FUNCTION loomworks.write(text) OWNER TO loomworks_writer;

CREATE OR REPLACE FUNCTION loomworks.read(statement text) RETURNS SETOF text
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE statement;
    PERFORM loomworks.check_path();
END $$;
ALTER FUNCTION loomworks.read(text) OWNER TO loomworks_writer;

REVOKE ALL ON FUNCTION loomworks.write(text), loomworks.read(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.write(text), loomworks.read(text) TO loomworks_undo;

-- What it may: the recorded tables, and what their constraints and defaults need. What is there already is not granted
-- again, so this is cheap after each DDL.
CREATE OR REPLACE FUNCTION loomworks.admit_writer() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    missing text;
BEGIN
    FOR missing IN
        SELECT format('USAGE ON SCHEMA %I', nspname) FROM pg_namespace
        WHERE nspname NOT IN ('loomworks', 'information_schema') AND NOT starts_with(nspname, 'pg_')
        AND NOT has_schema_privilege('loomworks_writer', oid, 'USAGE')
        UNION ALL
        SELECT format('SELECT, INSERT, UPDATE, DELETE ON %s', t::regclass) FROM loomworks.recordable() t
        WHERE NOT (has_table_privilege('loomworks_writer', t, 'SELECT') AND has_table_privilege('loomworks_writer', t, 'INSERT')
                   AND has_table_privilege('loomworks_writer', t, 'UPDATE') AND has_table_privilege('loomworks_writer', t, 'DELETE'))
        UNION ALL
        SELECT format('USAGE ON SEQUENCE %s', c.oid::regclass) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'S' AND c.relpersistence <> 't'
        AND n.nspname NOT IN ('loomworks', 'information_schema') AND NOT starts_with(n.nspname, 'pg_')
        -- Only of a sequence may it be asked.
        AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege('loomworks_writer', c.oid, 'USAGE') END
    LOOP
        EXECUTE format('GRANT %s TO loomworks_writer', missing);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION loomworks.admit_writer() FROM PUBLIC;
