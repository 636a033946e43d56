-- Guarding the recording, and recording what rows cannot show: DDL.
--
-- The event triggers belong to the superuser: no tenant can disable or drop them. What a superuser does is not looked
-- at; that also ends the recursion, because the functions below make their own changes as superuser.

-- After any DDL: the triggers are as they were, new and changed tables are recorded, the statement is in the log.
-- Outside of an event trigger the first query fails, so nobody can write into the log by calling this.
CREATE OR REPLACE FUNCTION loomworks.after_ddl(tag text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    tags text[];
    temporary boolean;
    refused text;
    changed text;
    target oid;
    holds_users oid;
    is_agent CONSTANT boolean := session_user >= 'lwai_' AND session_user < 'lwai`';
    -- What would run later in somebody else's session, with his rights.
    is_code CONSTANT text := '^(CREATE|ALTER|DROP) (FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TRIGGER|RULE|CAST|OPERATOR|OPERATOR CLASS|OPERATOR FAMILY|EVENT TRIGGER|LANGUAGE|EXTENSION|TRANSFORM|CONVERSION|POLICY|FOREIGN DATA WRAPPER|SERVER|USER MAPPING|FOREIGN TABLE|PUBLICATION|SUBSCRIPTION)$';
BEGIN
    -- The parts of a CREATE SCHEMA come with their own tags.
    SELECT coalesce(array_agg(DISTINCT command_tag), '{}') || tag, bool_and(coalesce(schema_name = 'pg_temp', false))
    INTO tags, temporary FROM pg_event_trigger_ddl_commands();
    -- Some functions belong to the roles as which the tenant's code runs.
    SELECT object_identity INTO refused FROM pg_event_trigger_ddl_commands() WHERE schema_name = 'loomworks' LIMIT 1;
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION 'loomworks: % is the platform''s and cannot be changed', refused USING ERRCODE = 'LW001';
    END IF;
    -- Code of the tenant's that an undo, or counting his users, has called.
    IF session_user = 'loomworks_undo' AND NOT coalesce(temporary, false) THEN
        RAISE EXCEPTION 'loomworks: nothing is made or changed here (%)', tag USING ERRCODE = 'LW001';
    END IF;
    IF is_agent THEN
        SELECT t INTO refused FROM unnest(tags) t WHERE t ~ is_code LIMIT 1;
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
    SELECT r.name INTO changed FROM loomworks.relation r LEFT JOIN loomworks.fingerprint f ON f.relation = r.oid
    WHERE r.oid IS NOT NULL AND f.now IS DISTINCT FROM r.fingerprint AND EXISTS (SELECT FROM pg_class c WHERE c.oid = r.oid)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'loomworks: the recording of % cannot be changed', changed USING ERRCODE = 'LW001';
    END IF;
    FOR target IN
        SELECT t FROM loomworks.recordable() t LEFT JOIN loomworks.relation r ON r.oid = t
        WHERE r.oid IS NULL OR r.name <> t::regclass::text
        OR EXISTS (SELECT FROM pg_event_trigger_ddl_commands() d WHERE d.classid = 'pg_class'::regclass AND d.objid = t)
    LOOP
        PERFORM loomworks.enrol(target);
        IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = target AND tgfoid = 'loomworks.check_users'::regproc) THEN
            holds_users := target;
        END IF;
    END LOOP;
    -- A right that was revoked is given again, and one to what is new. These make nothing and take nothing away, and are
    -- what an app's upgrade mostly is.
    IF NOT tags <@ ARRAY['ALTER TABLE', 'CREATE INDEX', 'COMMENT'] THEN
        PERFORM loomworks.admit_writer();
    END IF;
    IF holds_users IS NOT NULL THEN
        PERFORM loomworks.check_users_after_ddl(holds_users);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION loomworks.after_drop(tag text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    dropped record;
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
        END IF;
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION loomworks.after_ddl(text), loomworks.after_drop(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.after_ddl(text), loomworks.after_drop(text) TO PUBLIC;

-- These run as whoever runs the DDL, and so can tell the superuser (and our own functions) from everybody else: only he has
-- the rights of the one with the number 10, whom initdb makes. The undo engine makes nothing but temporary tables; what runs
-- in its session as another role is the tenant's code.
CREATE OR REPLACE FUNCTION loomworks.on_ddl() RETURNS event_trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_user = 'loomworks_undo' OR pg_has_role(10, 'USAGE') THEN
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
