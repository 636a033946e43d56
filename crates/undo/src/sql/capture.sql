-- Recording: a row log with typed columns and a trigger function for each table.
--
-- The values are stored in columns of their own type, because every detour loses something: jsonb knows no -0, text
-- depends on settings that the agent chooses, and casts may be the agent's own.

-- Of an older program.
DROP FUNCTION IF EXISTS loomworks.stored_type(oid, integer), loomworks.stored_value(text, name, oid);

-- One row for each client statement of an AI session that reaches a recorded table. A cascade comes here for each row,
-- so what is there already is found out first.
CREATE OR REPLACE FUNCTION loomworks.begin_operation() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    touched integer[] := ARRAY[TG_ARGV[0]::integer];
BEGIN
    IF EXISTS (SELECT FROM loomworks.operation o WHERE o.xid = pg_current_xact_id() AND o.at = statement_timestamp()
               AND o.relations @> touched) THEN
        RETURN NULL;
    END IF;
    IF (SELECT relhassubclass FROM pg_class WHERE oid = TG_RELID) THEN
        WITH RECURSIVE below AS (
            SELECT inhrelid FROM pg_inherits WHERE inhparent = TG_RELID
            UNION SELECT i.inhrelid FROM below JOIN pg_inherits i ON i.inhparent = below.inhrelid
        )
        SELECT touched || array_agg(r.id) INTO touched FROM below JOIN loomworks.relation r ON r.oid = below.inhrelid;
    END IF;
    INSERT INTO loomworks.operation (xid, at, until, session, statement, lsn, relations)
    VALUES (pg_current_xact_id(), statement_timestamp(), statement_timestamp(), session_user,
            left(current_query(), 10000), pg_current_wal_insert_lsn(), touched)
    ON CONFLICT (xid, at) DO UPDATE SET relations = operation.relations || excluded.relations;
    RETURN NULL;
END $$;
ALTER FUNCTION loomworks.begin_operation() OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.begin_operation() FROM PUBLIC;

-- All rows of a table that is about to be emptied. "columns" are those of its log, "row_values" what goes into them.
CREATE OR REPLACE FUNCTION loomworks.capture_truncate(target oid, number integer, columns text, row_values text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    total bigint;
BEGIN
    INSERT INTO loomworks.operation (xid, at, until, session, kind, statement, lsn, relations)
    VALUES (pg_current_xact_id(), statement_timestamp(), statement_timestamp(), session_user, 'truncate',
            left(current_query(), 10000), pg_current_wal_insert_lsn(), ARRAY[number])
    ON CONFLICT (xid, at) DO UPDATE SET relations = operation.relations || excluded.relations,
        kind = CASE operation.kind WHEN 'change' THEN 'truncate' ELSE operation.kind END;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM ONLY %s LIMIT 100001) r', target::regclass) INTO total;
    IF total <= 100000 THEN
        EXECUTE format('INSERT INTO loomworks.row_%s (xid, at, kind%s)
                        SELECT pg_current_xact_id(), statement_timestamp(), ''D''%s FROM ONLY %s r',
                       number, columns, row_values, target::regclass);
    ELSE
        UPDATE loomworks.operation
        SET note = jsonb_set(note, '{truncated}', coalesce(note -> 'truncated', '[]') || to_jsonb(target::regclass::text))
        WHERE xid = pg_current_xact_id() AND at = statement_timestamp();
    END IF;
END $$;
ALTER FUNCTION loomworks.capture_truncate(oid, integer, text, text) OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.capture_truncate(oid, integer, text, text) FROM PUBLIC;

-- Our triggers on the tables as text, to notice that one was changed: each, and those of a table together.
CREATE OR REPLACE VIEW loomworks.own_trigger AS
    SELECT tgrelid AS relation, tgname AS name,
        format('%s %s %s %s %s %s', tgrelid, tgname, tgfoid, tgtype, tgenabled, md5(coalesce(tgqual::text, ''))) AS now
    FROM pg_trigger WHERE NOT tgisinternal AND starts_with(tgname, '!loomworks_');
CREATE OR REPLACE VIEW loomworks.fingerprint AS
    SELECT relation, string_agg(now, ', ' ORDER BY name) AS now FROM loomworks.own_trigger GROUP BY relation;

-- Brings the columns of a table's log, and the function that fills it, up to date. That is all there is to do when a
-- table that is recorded has got other columns: triggers stay what they are.
--
-- Each tenant's database runs this once in a session when an app is upgraded, so that it is few statements, without what
-- takes long to plan: two short lists are put together here rather than by a join. "anew": the function is written also
-- when no column has changed.
--
-- The search path, and whether names are quoted, is set by all that call it.
CREATE OR REPLACE FUNCTION loomworks.follow_columns(target oid, number integer, anew boolean) RETURNS void
    LANGUAGE plpgsql SET check_function_bodies = off AS $$
DECLARE
    log CONSTANT text := 'loomworks.row_' || number::text;
    -- What is recorded, by the number of the column, if there is one.
    recorded loomworks.attribute[];
    was loomworks.attribute;
    last_slot integer := 0;
    -- How many columns were there, less those that are there still.
    missing integer := 0;
    col record;
    additions text := '';
    -- With %1$s for "o" and "n", and for OLD, NEW and the row of a copy.
    columns text := '';
    row_values text := '';
    settings text;
BEGIN
    FOR was IN SELECT * FROM loomworks.attribute WHERE relation_id = number LOOP
        last_slot := greatest(last_slot, was.slot);
        IF was.attnum IS NOT NULL THEN
            recorded[was.attnum] := was;
            missing := missing + 1;
        END IF;
    END LOOP;
    -- A column that is gone keeps its slot; one that was given another type is gone, and gets a new slot.
    --
    -- Types that somebody made could be dropped under the log, and are stored as text. format() calls the type's output
    -- function and no cast; num_nonnulls() tells NULL from a composite of NULLs.
    FOR col IN
        SELECT attnum, attname, format_type(atttypid, atttypmod) AS type, atttypid >= 16384 AS is_made,
            '"' || replace(replace(attname, '"', '""'), '%', '%%') || '"' AS quoted
        FROM pg_attribute WHERE attrelid = target AND attnum > 0 AND NOT attisdropped
    LOOP
        was := recorded[col.attnum];
        IF was.type = col.type THEN
            missing := missing - 1;
            IF was.name <> col.attname THEN
                UPDATE loomworks.attribute SET name = col.attname WHERE relation_id = number AND slot = was.slot;
                anew := true;
            END IF;
        ELSE
            last_slot := last_slot + 1;
            was.slot := last_slot;
            INSERT INTO loomworks.attribute (relation_id, slot, attnum, name, type, since)
            VALUES (number, last_slot, col.attnum, col.attname, col.type, nextval('loomworks.row_seq'));
            additions := additions || format(', ADD COLUMN o%s %s, ADD COLUMN n%1$s %2$s', last_slot,
                                             CASE WHEN col.is_made THEN 'text' ELSE col.type END);
        END IF;
        columns := columns || ', %1$s' || was.slot::text;
        IF col.is_made THEN
            row_values := row_values || format(', CASE WHEN pg_catalog.num_nonnulls(%%1$s.%1$s) OPERATOR(pg_catalog.=) 1 THEN pg_catalog.format(''%%%%s'', %%1$s.%1$s) END', col.quoted);
            -- Text of such a value must not depend on what the agent has set.
            settings := 'SET DateStyle = ''ISO, YMD'' SET IntervalStyle = ''iso_8601'' SET extra_float_digits = 1
                         SET bytea_output = ''hex'' SET TimeZone = ''UTC'' SET lc_monetary = ''C''';
        ELSE
            row_values := row_values || ', %1$s.' || col.quoted;
        END IF;
    END LOOP;
    IF missing > 0 THEN
        UPDATE loomworks.attribute a SET attnum = NULL WHERE relation_id = number AND attnum IS NOT NULL AND NOT EXISTS (
            SELECT FROM pg_attribute p WHERE p.attrelid = target AND p.attnum = a.attnum AND NOT p.attisdropped
            AND format_type(p.atttypid, p.atttypmod) = a.type);
        anew := true;
    END IF;
    IF additions <> '' THEN
        EXECUTE 'ALTER TABLE ' || log || right(additions, -1);
    ELSIF NOT anew THEN
        RETURN;
    END IF;

    -- Names are the tenant's and may contain anything, the marks of a quotation too: the body is quoted as a value. Whose
    -- the function is and who may call it stays.
    EXECUTE format('CREATE OR REPLACE FUNCTION loomworks.capture_%s() RETURNS trigger
                        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp %s AS %L', number, settings,
        format($f$
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                INSERT INTO %1$s (xid, at, kind%2$s%3$s)
                VALUES (pg_current_xact_id(), statement_timestamp(), 'U'%4$s%5$s);
            ELSIF TG_OP = 'INSERT' THEN
                INSERT INTO %1$s (xid, at, kind%3$s) VALUES (pg_current_xact_id(), statement_timestamp(), 'I'%5$s);
            ELSIF TG_OP = 'DELETE' THEN
                INSERT INTO %1$s (xid, at, kind%2$s) VALUES (pg_current_xact_id(), statement_timestamp(), 'D'%4$s);
            ELSE
                PERFORM loomworks.capture_truncate(TG_RELID, %6$s, '%2$s', %7$L);
            END IF;
            RETURN NULL;
        END $f$, log, format(columns, 'o'), format(columns, 'n'), format(row_values, 'OLD'), format(row_values, 'NEW'), number,
               format(row_values, 'r')));
END $$;
REVOKE ALL ON FUNCTION loomworks.follow_columns(oid, integer, boolean) FROM PUBLIC;

-- Records a table from now on, or brings all of its recording up to date after it was changed.
CREATE OR REPLACE FUNCTION loomworks.enrol(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    -- session_user cannot be changed by anybody but a superuser; SET ROLE does not change it. The names compare as
    -- bytes: '`' follows '_'. The undo engine's own changes are recorded as well, so that they can be undone.
    agent CONSTANT text := '(session_user >= ''lwai_'' AND session_user < ''lwai`'')';
    recorded CONSTANT text := '(' || agent || ' OR session_user = ''loomworks_undo'')';
    table_name CONSTANT text := target::regclass::text;
    is_leaf boolean;
    number integer;
    log text;
    function text;
BEGIN
    SELECT relkind = 'r' INTO is_leaf FROM pg_class WHERE oid = target;
    INSERT INTO loomworks.relation (oid, name) VALUES (target, table_name)
    ON CONFLICT (oid) DO UPDATE SET name = excluded.name RETURNING id INTO number;
    log := format('loomworks.row_%s', number);
    function := format('loomworks.capture_%s', number);

    IF to_regclass(log) IS NULL THEN
        EXECUTE format('CREATE TABLE %s (seq bigint NOT NULL DEFAULT nextval(''loomworks.row_seq''), xid xid8 NOT NULL,
                            at timestamptz NOT NULL, kind "char" NOT NULL)', log);
        EXECUTE format('ALTER TABLE %s OWNER TO loomworks_log', log);
        EXECUTE format('CREATE INDEX ON %s (xid)', log);
        EXECUTE format('GRANT SELECT ON %s TO loomworks_undo', log);
    END IF;

    PERFORM loomworks.follow_columns(target, number, true);
    EXECUTE format('ALTER FUNCTION %s() OWNER TO loomworks_log', function);
    EXECUTE format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', function);

    -- A partitioned table has no rows of its own; its partitions are recorded each.
    PERFORM loomworks.ensure_trigger(target, '!loomworks_operation', 'AFTER INSERT OR UPDATE OR DELETE', 'STATEMENT',
                                     agent, 'loomworks.begin_operation', number::text);
    IF is_leaf THEN
        PERFORM loomworks.ensure_trigger(target, '!loomworks_row', 'AFTER INSERT OR UPDATE OR DELETE', 'ROW',
                                         recorded, function);
        PERFORM loomworks.ensure_trigger(target, '!loomworks_truncate', 'BEFORE TRUNCATE', 'STATEMENT', agent, function);
    END IF;
    PERFORM loomworks.watch_users(target);
    IF EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'loomworks_full') THEN
        PERFORM loomworks.block_table(target);
    END IF;
    UPDATE loomworks.relation SET fingerprint = (SELECT f.now FROM loomworks.fingerprint f WHERE f.relation = target)
    WHERE id = number;
END $$;
REVOKE ALL ON FUNCTION loomworks.enrol(oid) FROM PUBLIC;

-- The name makes a trigger the first of a row's: what the app's own triggers then do to the row is logged after it.
-- ALWAYS: also where replication's role is set, under which ordinary triggers are silent.
CREATE OR REPLACE FUNCTION loomworks.ensure_trigger(target oid, trigger name, event text, each text, condition text,
                                                    function text, argument text DEFAULT '') RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_function text;
BEGIN
    SELECT tgfoid::regproc::text INTO found_function FROM pg_trigger
    WHERE tgrelid = target AND tgname = trigger AND tgenabled = 'A' AND tgparentid = 0;
    IF found_function = function THEN
        RETURN;
    END IF;
    EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s', trigger, target::regclass);
    EXECUTE format('CREATE TRIGGER %I %s ON %s FOR EACH %s WHEN (%s) EXECUTE FUNCTION %s(%s)', trigger, event,
                   target::regclass, each, condition, function, argument);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', target::regclass, trigger);
END $$;
REVOKE ALL ON FUNCTION loomworks.ensure_trigger(oid, name, text, text, text, text, text) FROM PUBLIC;

-- The tables that are to be recorded.
CREATE OR REPLACE FUNCTION loomworks.recordable() RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
    AND n.nspname NOT IN ('loomworks', 'information_schema') AND NOT starts_with(n.nspname, 'pg_') ORDER BY c.oid
$$;
CREATE OR REPLACE FUNCTION loomworks.enrol_all() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target oid;
BEGIN
    FOR target IN SELECT * FROM loomworks.recordable() LOOP
        PERFORM loomworks.enrol(target);
    END LOOP;
    PERFORM loomworks.admit_writer();
END $$;
REVOKE ALL ON FUNCTION loomworks.enrol_all() FROM PUBLIC;
