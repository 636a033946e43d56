-- Limits that hold for whoever works in the database: users, storage, AI operations a day. Run by a superuser; may be
-- run again. No limit is set here: the row says which ones hold.

CREATE TABLE IF NOT EXISTS loomworks.quota (
    single                  boolean PRIMARY KEY DEFAULT true CHECK (single),
    -- NULL: no limit.
    max_users               integer,
    -- The app's table of users, with its schema, and which of its rows count. NULL: they are not counted.
    users_table             text,
    users_active            text NOT NULL DEFAULT 'true',
    max_ai_operations_daily integer,
    -- Said to whoever is refused while the storage is full.
    storage                 text
);
ALTER TABLE loomworks.quota OWNER TO loomworks_log;
INSERT INTO loomworks.quota DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Who is about to take a user's place changes this row first: the next one waits, and then sees him. A transaction that
-- could not see him (its snapshot is older) fails as one that cannot be serialized.
CREATE TABLE IF NOT EXISTS loomworks.users_turn (single boolean PRIMARY KEY DEFAULT true CHECK (single), turns bigint NOT NULL DEFAULT 0);
-- How many there were when the limit became less than that. NULL: it is kept.
ALTER TABLE loomworks.users_turn ADD COLUMN IF NOT EXISTS beyond bigint;
ALTER TABLE loomworks.users_turn OWNER TO loomworks_log;
INSERT INTO loomworks.users_turn DEFAULT VALUES ON CONFLICT DO NOTHING;
REVOKE ALL ON loomworks.users_turn FROM loomworks_quota;
GRANT SELECT ON loomworks.quota TO loomworks_quota;

-- A row for each connection, so that two agents do not wait for each other's transactions.
CREATE TABLE IF NOT EXISTS loomworks.ai_usage (
    day        date NOT NULL,
    backend    integer NOT NULL,
    operations integer NOT NULL,
    PRIMARY KEY (day, backend)
);
ALTER TABLE loomworks.ai_usage OWNER TO loomworks_log;

-- Who commits what an agent did changes this row first: the next one waits, and then sees what was committed.
CREATE TABLE IF NOT EXISTS loomworks.ai_turn (single boolean PRIMARY KEY DEFAULT true CHECK (single), xid xid8);
ALTER TABLE loomworks.ai_turn OWNER TO loomworks_log;
INSERT INTO loomworks.ai_turn DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Users.
-- The condition may call what the tenant made (a type's cast), so it is worked out as loomworks_quota, which may read
-- the tables of users and nothing more. Whether there is room is decided as loomworks_log, as which nothing of the
-- tenant's runs.

-- NULL: they cannot be counted, because the condition does not fit the table.
CREATE OR REPLACE FUNCTION loomworks.count_users(target oid) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    condition CONSTANT text := (SELECT users_active FROM loomworks.quota);
    counted bigint;
BEGIN
    -- Whatever else has the name may be anybody's code.
    IF NOT EXISTS (SELECT FROM pg_class WHERE oid = target AND relkind IN ('r', 'p')) THEN
        RETURN NULL;
    END IF;
    BEGIN
        EXECUTE format('SELECT FROM %s WHERE (%s) LIMIT 0', target::regclass, condition);
    EXCEPTION WHEN undefined_column OR undefined_function OR undefined_object OR datatype_mismatch OR cannot_coerce THEN
        RETURN NULL;
    END;
    EXECUTE format('SELECT count(*) FROM %s WHERE (%s)', target::regclass, condition) INTO counted;
    PERFORM loomworks.check_path();
    RETURN counted;
END $$;
ALTER FUNCTION loomworks.count_users(oid) OWNER TO loomworks_quota;
REVOKE ALL ON FUNCTION loomworks.count_users(oid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.count_users(oid) TO loomworks_log;

-- A table and those that it is a partition or an heir of.
CREATE OR REPLACE FUNCTION loomworks.lineage(target oid) RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE above AS (SELECT target AS oid UNION SELECT inhparent FROM pg_inherits JOIN above ON inhrelid = above.oid)
    SELECT oid FROM above
$$;

-- The users of the table that all partitions and heirs belong to.
CREATE OR REPLACE FUNCTION loomworks.count_all_users(target oid) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT loomworks.count_users(t) FROM loomworks.lineage(target) t
    WHERE NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = t) LIMIT 1
$$;
ALTER FUNCTION loomworks.count_all_users(oid) OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.count_all_users(oid) FROM PUBLIC;

-- Refuses what has made more users than there may be.
CREATE OR REPLACE FUNCTION loomworks.take_places(target oid, more bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    allowed CONSTANT integer := (SELECT max_users FROM loomworks.quota);
    used bigint;
BEGIN
    IF allowed IS NULL OR more <= 0 THEN
        RETURN;
    END IF;
    UPDATE loomworks.users_turn SET turns = turns + 1;
    used := loomworks.count_all_users(target);
    IF used IS NULL THEN
        RAISE EXCEPTION 'loomworks: the users of % cannot be counted', target::regclass USING ERRCODE = 'LW429',
            HINT = 'Its columns are not those that the app''s profile names.';
    ELSIF used > allowed THEN
        RAISE EXCEPTION 'loomworks: this tenant may have % users; % are in use, % are left, % more were asked for',
            allowed, used - more, greatest(allowed - used + more, 0), more
            USING ERRCODE = 'LW429', HINT = 'Deactivate users who are not needed, or ask for a higher limit.';
    END IF;
    UPDATE loomworks.users_turn SET beyond = NULL WHERE beyond IS NOT NULL;
END $$;
ALTER FUNCTION loomworks.take_places(oid, bigint) OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.take_places(oid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.take_places(oid, bigint) TO loomworks_quota;

CREATE OR REPLACE FUNCTION loomworks.check_users() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    allowed integer;
    condition text;
    more bigint;
BEGIN
    SELECT max_users, users_active INTO allowed, condition FROM loomworks.quota;
    IF allowed IS NULL THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        EXECUTE format('SELECT (SELECT count(*) FROM new_rows WHERE (%1$s)) - (SELECT count(*) FROM old_rows WHERE (%1$s))', condition)
        INTO more;
    ELSE
        EXECUTE format('SELECT count(*) FROM new_rows WHERE (%s)', condition) INTO more;
    END IF;
    -- From here on the search path is whatever the condition made of it, until it has been looked at.
    PERFORM loomworks.check_path();
    PERFORM loomworks.take_places(TG_RELID, more);
    RETURN NULL;
END $$;
ALTER FUNCTION loomworks.check_users() OWNER TO loomworks_quota;
REVOKE ALL ON FUNCTION loomworks.check_users() FROM PUBLIC;

-- DDL makes users too: another type of a column, a default, a table that takes the name or is attached. Fewer than there
-- were when the limit was lowered are no reason.
CREATE OR REPLACE FUNCTION loomworks.check_users_after_ddl(target oid) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    allowed CONSTANT integer := (SELECT max_users FROM loomworks.quota);
    used bigint;
BEGIN
    IF allowed IS NULL THEN
        RETURN;
    END IF;
    UPDATE loomworks.users_turn SET turns = turns + 1;
    -- A condition that does not fit just now lets nobody in either.
    used := loomworks.count_all_users(target);
    IF used > greatest(allowed, (SELECT beyond FROM loomworks.users_turn)) THEN
        RAISE EXCEPTION 'loomworks: this tenant may have % users; with this there would be %', allowed, used
            USING ERRCODE = 'LW429', HINT = 'Deactivate users who are not needed, or ask for a higher limit.';
    END IF;
END $$;
ALTER FUNCTION loomworks.check_users_after_ddl(oid) OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.check_users_after_ddl(oid) FROM PUBLIC;

-- Whether a table holds users, and if so, its triggers. Called for each table that is recorded.
CREATE OR REPLACE FUNCTION loomworks.watch_users(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    users oid;
    above oid;
BEGIN
    SELECT to_regclass(users_table) INTO users FROM loomworks.quota;
    IF users IS NULL OR users NOT IN (SELECT * FROM loomworks.lineage(target)) THEN
        RETURN;
    END IF;
    FOR above IN SELECT * FROM loomworks.lineage(target) LOOP
        IF NOT has_table_privilege('loomworks_quota', above, 'SELECT') THEN
            EXECUTE format('GRANT SELECT ON %s TO loomworks_quota', above::regclass);
        END IF;
        IF NOT has_schema_privilege('loomworks_quota', (SELECT relnamespace FROM pg_class WHERE oid = above), 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %s TO loomworks_quota', (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = above));
        END IF;
    END LOOP;
    IF (SELECT count(*) FROM pg_trigger WHERE tgrelid = target AND tgfoid = 'loomworks.check_users'::regproc
        AND tgname IN ('!loomworks_users_added', '!loomworks_users_changed') AND tgenabled = 'O') = 2 THEN
        RETURN;
    END IF;
    EXECUTE format('DROP TRIGGER IF EXISTS "!loomworks_users_added" ON %s', target::regclass);
    EXECUTE format('DROP TRIGGER IF EXISTS "!loomworks_users_changed" ON %s', target::regclass);
    EXECUTE format('CREATE TRIGGER "!loomworks_users_added" AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows
                    FOR EACH STATEMENT EXECUTE FUNCTION loomworks.check_users()', target::regclass);
    EXECUTE format('CREATE TRIGGER "!loomworks_users_changed" AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows
                    NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION loomworks.check_users()', target::regclass);
END $$;
REVOKE ALL ON FUNCTION loomworks.watch_users(oid) FROM PUBLIC;

-- Takes the triggers from the tables that held users by another name of the table. Those of the present name are put
-- there again by watch_users().
CREATE OR REPLACE FUNCTION loomworks.unwatch_users() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    target oid;
BEGIN
    FOR target IN SELECT DISTINCT tgrelid FROM pg_trigger WHERE tgfoid = 'loomworks.check_users'::regproc LOOP
        EXECUTE format('DROP TRIGGER IF EXISTS "!loomworks_users_added" ON %s', target::regclass);
        EXECUTE format('DROP TRIGGER IF EXISTS "!loomworks_users_changed" ON %s', target::regclass);
        UPDATE loomworks.relation r SET fingerprint = f.now FROM loomworks.fingerprint f WHERE f.relation = target AND r.oid = target;
    END LOOP;
    FOR target IN SELECT t FROM loomworks.recordable() t WHERE has_table_privilege('loomworks_quota', t, 'SELECT') LOOP
        EXECUTE format('REVOKE SELECT ON %s FROM loomworks_quota', target::regclass);
    END LOOP;
END $$;
REVOKE ALL ON FUNCTION loomworks.unwatch_users() FROM PUBLIC;

-- AI operations. Counted in the agent's own transaction, so that what is rolled back does not count.
CREATE OR REPLACE FUNCTION loomworks.refuse_operations() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    allowed CONSTANT integer := (SELECT max_ai_operations_daily FROM loomworks.quota);
BEGIN
    IF (SELECT sum(operations) FROM loomworks.ai_usage WHERE day = (statement_timestamp() AT TIME ZONE 'UTC')::date) > allowed THEN
        RAISE EXCEPTION 'loomworks: AI agents may do % operations a day for this tenant, and have done them', allowed
            USING ERRCODE = 'LW429', HINT = 'It begins anew at midnight UTC. People are not counted.';
    END IF;
END $$;
ALTER FUNCTION loomworks.refuse_operations() OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.refuse_operations() FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.count_operation() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO loomworks.ai_usage (day, backend, operations)
    VALUES ((statement_timestamp() AT TIME ZONE 'UTC')::date, pg_backend_pid(), 1)
    ON CONFLICT (day, backend) DO UPDATE SET operations = ai_usage.operations + 1;
    PERFORM loomworks.refuse_operations();
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION loomworks.count_operation() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.count_operation() TO loomworks_log;
CREATE OR REPLACE TRIGGER count_operation AFTER INSERT ON loomworks.operation FOR EACH ROW
    WHEN (NEW.session >= 'lwai_' AND NEW.session < 'lwai`') EXECUTE FUNCTION loomworks.count_operation();

-- A statement does not see what other connections have not committed. So the commits take turns, and each looks again.
CREATE OR REPLACE FUNCTION loomworks.recount_operations() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT max_ai_operations_daily FROM loomworks.quota) IS NULL THEN
        RETURN NULL;
    END IF;
    -- Once a transaction, however many operations it has.
    IF NOT EXISTS (SELECT FROM loomworks.ai_turn WHERE xid = pg_current_xact_id()) THEN
        UPDATE loomworks.ai_turn SET xid = pg_current_xact_id();
    END IF;
    PERFORM loomworks.refuse_operations();
    RETURN NULL;
END $$;
ALTER FUNCTION loomworks.recount_operations() OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.recount_operations() FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'loomworks.operation'::regclass AND tgname = 'recount_operations') THEN
        CREATE CONSTRAINT TRIGGER recount_operations AFTER INSERT ON loomworks.operation DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.session >= 'lwai_' AND NEW.session < 'lwai`') EXECUTE FUNCTION loomworks.recount_operations();
    END IF;
END $$;

-- Storage. The triggers are there only while it is full: otherwise they cost nothing.

-- Reading, DELETE, TRUNCATE, DROP and VACUUM go on. So does what follows from a DELETE: a foreign key that sets NULL, an
-- app's own trigger.
CREATE OR REPLACE FUNCTION loomworks.refuse_full() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF session_user <> 'loomworks_undo' AND pg_trigger_depth() = 1 THEN
        RAISE EXCEPTION 'loomworks: this tenant''s storage is full (%): it can be read and deleted from', (SELECT storage FROM loomworks.quota)
            USING ERRCODE = 'LW429', HINT = 'Delete what is not needed and run VACUUM FULL on the table, or ask for a higher limit.';
    END IF;
    RETURN NULL;
END $$;
ALTER FUNCTION loomworks.refuse_full() OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.refuse_full() FROM PUBLIC;

-- What makes tables and indexes, and what writes a table anew. Looked at when it is done, because only then it can be told
-- what it was: temporary tables are nobody's but the session's, and dropping a column or a partition makes room.
CREATE OR REPLACE FUNCTION loomworks.refuse_full_ddl() RETURNS event_trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    what text;
BEGIN
    IF current_user = 'loomworks_undo' OR pg_has_role(10, 'USAGE') THEN
        RETURN;
    END IF;
    IF tg_event = 'table_rewrite' THEN
        SELECT tg_tag INTO what FROM pg_class WHERE oid = pg_event_trigger_table_rewrite_oid() AND relpersistence <> 't';
    ELSE
        SELECT command_tag INTO what FROM pg_event_trigger_ddl_commands()
        WHERE command_tag IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE MATERIALIZED VIEW',
                              'REFRESH MATERIALIZED VIEW', 'CREATE INDEX', 'CREATE FUNCTION', 'CREATE TRIGGER')
        AND schema_name IS DISTINCT FROM 'pg_temp' LIMIT 1;
        -- A constraint's index, or a partition's: as young as this transaction.
        IF NOT FOUND AND tg_tag = 'ALTER TABLE' THEN
            SELECT tg_tag INTO what FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
            WHERE c.relpersistence <> 't' AND age(i.xmin) <= 0 LIMIT 1;
        END IF;
    END IF;
    IF what IS NOT NULL THEN
        RAISE EXCEPTION 'loomworks: this tenant''s storage is full: % would need more', what
            USING ERRCODE = 'LW429', HINT = 'Delete what is not needed and run VACUUM FULL on the table, or ask for a higher limit.';
    END IF;
END $$;

-- From here on no table is made, and no other can be written to once block_table() has been called for each.
CREATE OR REPLACE FUNCTION loomworks.block_ddl() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT count(*) FROM pg_event_trigger WHERE evtname IN ('loomworks_full', 'loomworks_full_rewrite')) = 2 THEN
        RETURN;
    END IF;
    DROP EVENT TRIGGER IF EXISTS loomworks_full;
    DROP EVENT TRIGGER IF EXISTS loomworks_full_rewrite;
    CREATE EVENT TRIGGER loomworks_full ON ddl_command_end EXECUTE FUNCTION loomworks.refuse_full_ddl();
    CREATE EVENT TRIGGER loomworks_full_rewrite ON table_rewrite EXECUTE FUNCTION loomworks.refuse_full_ddl();
    ALTER EVENT TRIGGER loomworks_full ENABLE ALWAYS;
    ALTER EVENT TRIGGER loomworks_full_rewrite ENABLE ALWAYS;
END $$;
REVOKE ALL ON FUNCTION loomworks.block_ddl() FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.unblock_ddl() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DROP EVENT TRIGGER IF EXISTS loomworks_full;
    DROP EVENT TRIGGER IF EXISTS loomworks_full_rewrite;
END $$;
REVOKE ALL ON FUNCTION loomworks.unblock_ddl() FROM PUBLIC;

-- What is to be closed and is not: tables, and views that are written to by triggers of their own.
CREATE OR REPLACE FUNCTION loomworks.to_block() RETURNS SETOF oid
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT t FROM (
        SELECT * FROM loomworks.recordable()
        -- INSTEAD OF (64) an INSERT (4) or an UPDATE (16).
        UNION SELECT tgrelid FROM pg_trigger WHERE tgtype & 64 <> 0 AND tgtype & 20 <> 0
    ) all_of_them (t)
    WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = t AND tgfoid = 'loomworks.refuse_full'::regproc)
$$;
REVOKE ALL ON FUNCTION loomworks.to_block() FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.block_table(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
BEGIN
    IF (SELECT relkind = 'v' FROM pg_class WHERE oid = target) THEN
        -- A view's triggers cannot be switched off.
        EXECUTE format('CREATE TRIGGER "!loomworks_full" BEFORE INSERT OR UPDATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION loomworks.refuse_full()',
                       target::regclass);
        RETURN;
    END IF;
    PERFORM loomworks.ensure_trigger(target, '!loomworks_full', 'BEFORE INSERT OR UPDATE', 'STATEMENT', 'true', 'loomworks.refuse_full');
    UPDATE loomworks.relation r SET fingerprint = f.now FROM loomworks.fingerprint f WHERE f.relation = target AND r.oid = target;
END $$;
REVOKE ALL ON FUNCTION loomworks.block_table(oid) FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.unblock_table(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
DECLARE
    its_name name;
BEGIN
    FOR its_name IN SELECT tgname FROM pg_trigger WHERE tgrelid = target AND tgfoid = 'loomworks.refuse_full'::regproc LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', its_name, target::regclass);
    END LOOP;
    UPDATE loomworks.relation r SET fingerprint = f.now FROM loomworks.fingerprint f WHERE f.relation = target AND r.oid = target;
END $$;
REVOKE ALL ON FUNCTION loomworks.unblock_table(oid) FROM PUBLIC;

-- What is used, for the platform to show.
CREATE OR REPLACE FUNCTION loomworks.usage(OUT users bigint, OUT ai_operations bigint)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    target oid;
BEGIN
    SELECT to_regclass(users_table) INTO target FROM loomworks.quota;
    IF target IS NOT NULL THEN
        users := loomworks.count_users(target);
    END IF;
    SELECT coalesce(sum(operations), 0) INTO ai_operations FROM loomworks.ai_usage
    WHERE day = (statement_timestamp() AT TIME ZONE 'UTC')::date;
END $$;
ALTER FUNCTION loomworks.usage() OWNER TO loomworks_log;
REVOKE ALL ON FUNCTION loomworks.usage() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.usage() TO loomworks_undo;
