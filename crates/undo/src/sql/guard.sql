-- Guarding the recording, and recording what rows cannot show: DDL.
--
-- The event triggers belong to the superuser: no tenant can disable or drop them. What a superuser does is not looked
-- at; that also ends the recursion, because the functions below make their own changes as superuser.

-- After any DDL: the triggers are as they were, new and changed tables are recorded, the statement is in the log.
-- Outside of an event trigger the first query fails, so nobody can write into the log by calling this.
--
-- An app's upgrade comes here once in each tenant's database, in a session that knows nothing yet. What costs there is not
-- to run a statement but to parse and plan it, and to look up each function, operator and table that it names. So what an
-- upgrade mostly does is seen to here with as few words as possible: a table that is recorded, stands alone and holds no
-- users has got other columns, or an index. Everything else is after_other_ddl()'s.
CREATE OR REPLACE FUNCTION loomworks.after_ddl(tag text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    commands integer := 0;
    target oid;
    its_name text;
    is_table boolean;
    is_light boolean;
    number integer;
BEGIN
    FOR target, its_name, is_table, is_light IN
        SELECT objid, object_identity, object_type = 'table', object_type IN ('table', 'index') AND schema_name <> 'loomworks'
            AND command_tag IN ('ALTER TABLE', 'CREATE INDEX', 'COMMENT')
        FROM pg_event_trigger_ddl_commands()
    LOOP
        commands := commands + 1;
    END LOOP;
    IF commands = 1 AND is_light
       AND NOT (session_user = 'loomworks_undo' OR session_user >= 'lwai_' AND session_user < 'lwai`') THEN
        IF NOT is_table THEN
            RETURN;
        END IF;
        -- What is done to a table is done to its partitions and heirs, which the statement does not name. All that these
        -- statements can do to a trigger is to switch it: there are to be the three that record, each for "always".
        SELECT id INTO number FROM loomworks.relation WHERE oid = target AND name = its_name
        AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = target OR inhrelid = target)
        AND (SELECT string_agg(CASE WHEN tgname IN ('!loomworks_operation', '!loomworks_row', '!loomworks_truncate')
                                    THEN tgenabled::text ELSE 'another' END, '')
             FROM pg_trigger WHERE tgrelid = target AND starts_with(tgname, '!loomworks_')) = 'AAA';
        IF FOUND THEN
            PERFORM loomworks.follow_columns(target, number, false);
            RETURN;
        END IF;
    END IF;
    PERFORM loomworks.after_other_ddl(tag);
END $$;

-- After DDL of any kind, of anybody.
CREATE OR REPLACE FUNCTION loomworks.after_other_ddl(tag text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    -- What an app's upgrade mostly is. None of these makes a table or a sequence, or gives a name to what it does not name.
    plain CONSTANT text[] := ARRAY['ALTER TABLE', 'CREATE INDEX', 'COMMENT'];
    is_plain boolean;
    is_ours boolean;
    temporary boolean;
    refused text;
    changed text;
    -- The tables that the statement has named, with what is below them, and those of which more than columns may have changed.
    tables oid[];
    below oid[];
    whole oid[];
    target oid;
    number integer;
    is_whole boolean;
    limits record;
    holds_users oid;
    is_agent CONSTANT boolean := session_user >= 'lwai_' AND session_user < 'lwai`';
    -- What would run later in somebody else's session, with his rights.
    is_code CONSTANT text := '^(CREATE|ALTER|DROP) (FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TRIGGER|RULE|CAST|OPERATOR|OPERATOR CLASS|OPERATOR FAMILY|EVENT TRIGGER|LANGUAGE|EXTENSION|TRANSFORM|CONVERSION|POLICY|FOREIGN DATA WRAPPER|SERVER|USER MAPPING|FOREIGN TABLE|PUBLICATION|SUBSCRIPTION)$';
BEGIN
    -- Some functions in our schema belong to the roles as which the tenant's code runs.
    SELECT bool_and(command_tag = ANY (plain)) AND tag = ANY (plain), bool_and(schema_name IS NOT DISTINCT FROM 'pg_temp'),
        bool_or(schema_name = 'loomworks'), array_agg(objid) FILTER (WHERE object_type IN ('table', 'table column'))
    INTO is_plain, temporary, is_ours, tables FROM pg_event_trigger_ddl_commands();
    IF is_ours THEN
        SELECT object_identity INTO refused FROM pg_event_trigger_ddl_commands() WHERE schema_name = 'loomworks' LIMIT 1;
        RAISE EXCEPTION 'loomworks: % is the platform''s and cannot be changed', refused USING ERRCODE = 'LW001';
    END IF;
    -- Code of the tenant's that an undo, or counting his users, has called.
    IF session_user = 'loomworks_undo' AND NOT coalesce(temporary, false) THEN
        RAISE EXCEPTION 'loomworks: nothing is made or changed here (%)', tag USING ERRCODE = 'LW001';
    END IF;
    IF is_agent THEN
        -- The parts of a CREATE SCHEMA come with their own tags.
        SELECT t INTO refused FROM (SELECT tag UNION ALL SELECT command_tag FROM pg_event_trigger_ddl_commands()) all_of_them (t)
        WHERE t ~ is_code LIMIT 1;
        IF refused IS NOT NULL THEN
            RAISE EXCEPTION 'loomworks: an AI session may not run %', refused USING ERRCODE = 'LW403',
                HINT = 'It would run in other people''s sessions. Ask a person to do it.';
        END IF;
        -- Temporary tables are nobody's but the session's. What is dropped is logged by after_drop().
        IF NOT coalesce(temporary, starts_with(tag, 'DROP ')) THEN
            INSERT INTO loomworks.operation (xid, at, until, session, kind, statement, lsn, note)
            VALUES (pg_current_xact_id(), statement_timestamp(), statement_timestamp(), session_user, 'ddl',
                    left(current_query(), 10000), pg_current_wal_insert_lsn(), jsonb_build_object('tag', tag))
            ON CONFLICT (xid, at) DO UPDATE SET kind = 'ddl', note = operation.note || excluded.note;
        END IF;
    END IF;
    -- All at once, which is quickly planned, and only if something is not as it was, one by one.
    IF (SELECT string_agg(t.now, ', ' ORDER BY t.relation, t.name) FROM loomworks.own_trigger t) IS DISTINCT FROM
       (SELECT string_agg(r.fingerprint, ', ' ORDER BY r.oid) FROM loomworks.relation r WHERE r.oid IS NOT NULL) THEN
        SELECT r.name INTO changed FROM loomworks.relation r LEFT JOIN loomworks.fingerprint f ON f.relation = r.oid
        WHERE r.oid IS NOT NULL AND f.now IS DISTINCT FROM r.fingerprint AND EXISTS (SELECT FROM pg_class c WHERE c.oid = r.oid)
        LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION 'loomworks: the recording of % cannot be changed', changed USING ERRCODE = 'LW001';
        END IF;
    END IF;

    SELECT max_users, users_table INTO limits FROM loomworks.quota;
    -- What is done to a table is done to its partitions and heirs, which the statement does not name.
    below := tables;
    WHILE below IS NOT NULL LOOP
        SELECT array_agg(inhrelid) INTO below FROM pg_inherits WHERE inhparent = ANY (below);
        tables := tables || below;
    END LOOP;
    IF tables IS NOT NULL THEN
        FOREACH target IN ARRAY tables LOOP
            -- As its triggers are what they were, it needs others only if it has a name for which there are some, or may have
            -- come to be one of the tables of users.
            SELECT r.id INTO number FROM loomworks.relation r WHERE r.oid = target AND r.name = target::regclass::text;
            is_whole := NOT FOUND;
            IF limits.users_table IS NOT NULL AND NOT is_whole THEN
                is_whole := to_regclass(limits.users_table) = target OR EXISTS (SELECT FROM pg_inherits WHERE inhrelid = target);
            END IF;
            IF is_whole THEN
                whole := whole || target;
            ELSE
                PERFORM loomworks.follow_columns(target, number, false);
            END IF;
        END LOOP;
    END IF;
    IF is_plain IS NOT TRUE OR whole IS NOT NULL THEN
        FOR target IN
            SELECT t FROM loomworks.recordable() t LEFT JOIN loomworks.relation r ON r.oid = t
            WHERE r.oid IS NULL OR r.name <> t::regclass::text OR t = ANY (whole)
            -- Its columns are the type's.
            OR tag = 'ALTER TYPE' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = t AND c.reloftype <> 0)
        LOOP
            PERFORM loomworks.enrol(target);
            tables := tables || target;
        END LOOP;
        -- A right that was revoked is given again, and one to what is new.
        PERFORM loomworks.admit_writer();
    END IF;
    IF limits.max_users IS NOT NULL AND limits.users_table IS NOT NULL THEN
        SELECT tgrelid INTO holds_users FROM pg_trigger
        WHERE tgrelid = ANY (tables) AND tgfoid = 'loomworks.check_users'::regproc LIMIT 1;
        IF FOUND THEN
            PERFORM loomworks.check_users_after_ddl(holds_users);
        END IF;
    END IF;
END $$;
REVOKE ALL ON FUNCTION loomworks.after_other_ddl(text) FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.after_drop(tag text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    dropped record;
    number integer;
BEGIN
    FOR dropped IN SELECT * FROM pg_event_trigger_dropped_objects() LOOP
        IF dropped.schema_name = 'loomworks' THEN
            RAISE EXCEPTION 'loomworks: % is the platform''s and cannot be dropped', dropped.object_identity USING ERRCODE = 'LW001';
        END IF;
        IF dropped.object_type = 'trigger' AND dropped.original AND dropped.address_names[3] LIKE '!loomworks\_%' THEN
            RAISE EXCEPTION 'loomworks: the recording of % cannot be changed', dropped.object_identity USING ERRCODE = 'LW001';
        END IF;
        IF (dropped.original OR dropped.object_type IN ('table', 'table column', 'view', 'materialized view', 'sequence', 'type'))
           AND NOT dropped.is_temporary AND session_user >= 'lwai_' AND session_user < 'lwai`' THEN
            INSERT INTO loomworks.operation (xid, at, until, session, kind, statement, lsn, note)
            VALUES (pg_current_xact_id(), statement_timestamp(), statement_timestamp(), session_user, 'ddl',
                    left(current_query(), 10000), pg_current_wal_insert_lsn(),
                    jsonb_build_object('tag', tag, 'dropped', jsonb_build_array(dropped.object_identity)))
            ON CONFLICT (xid, at) DO UPDATE SET kind = 'ddl',
                note = operation.note || jsonb_build_object('tag', tag,
                    'dropped', coalesce(operation.note -> 'dropped', '[]') || to_jsonb(dropped.object_identity));
        END IF;
        IF dropped.classid = 'pg_class'::regclass AND dropped.objsubid = 0 THEN
            UPDATE loomworks.relation SET oid = NULL, fingerprint = NULL WHERE oid = dropped.objid;
        ELSIF dropped.object_type = 'table column' AND tag <> 'ALTER TABLE' THEN
            -- It went with its type, and after_ddl() is told of no table.
            SELECT r.id INTO number FROM loomworks.relation r WHERE r.oid = dropped.objid;
            IF FOUND THEN
                PERFORM loomworks.follow_columns(dropped.objid, number, false);
            END IF;
        END IF;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION loomworks.after_ddl(text), loomworks.after_drop(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.after_ddl(text), loomworks.after_drop(text) TO PUBLIC;

-- These run as whoever runs the DDL, and so can tell the superuser (and our own functions) from everybody else: only he has
-- the rights of the one with the number 10, whom initdb makes. The undo engine makes nothing but temporary tables; what runs
-- in its session as another role is the tenant's code.
--
-- on_ddl() names everything in full: to have a search path set for it would cost more than all it does.
CREATE OR REPLACE FUNCTION loomworks.on_ddl() RETURNS event_trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF current_user OPERATOR(pg_catalog.=) 'loomworks_undo' OR pg_catalog.pg_has_role(10, 'USAGE') THEN
        RETURN;
    END IF;
    PERFORM loomworks.after_ddl(tg_tag);
END $$;

CREATE OR REPLACE FUNCTION loomworks.on_drop() RETURNS event_trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_user = 'loomworks_undo' OR pg_has_role(10, 'USAGE') THEN
        RETURN;
    END IF;
    PERFORM loomworks.after_drop(tg_tag);
END $$;

DROP EVENT TRIGGER IF EXISTS loomworks_on_ddl;
DROP EVENT TRIGGER IF EXISTS loomworks_on_drop;
CREATE EVENT TRIGGER loomworks_on_ddl ON ddl_command_end EXECUTE FUNCTION loomworks.on_ddl();
CREATE EVENT TRIGGER loomworks_on_drop ON sql_drop EXECUTE FUNCTION loomworks.on_drop();
ALTER EVENT TRIGGER loomworks_on_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER loomworks_on_drop ENABLE ALWAYS;

-- Large objects have no triggers, so nobody who works here gets to them.
REVOKE EXECUTE ON FUNCTION pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid), pg_catalog.lo_from_bytea(oid, bytea),
    pg_catalog.lo_open(oid, integer), pg_catalog.lo_put(oid, bigint, bytea), pg_catalog.lo_truncate(integer, integer),
    pg_catalog.lo_truncate64(integer, bigint), pg_catalog.lo_unlink(oid), pg_catalog.lowrite(integer, bytea)
    FROM PUBLIC;

GRANT SELECT, INSERT, UPDATE ON loomworks.operation TO loomworks_undo;
GRANT SELECT ON loomworks.relation, loomworks.attribute TO loomworks_undo;
