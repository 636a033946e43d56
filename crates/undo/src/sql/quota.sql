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
ALTER TABLE loomworks.users_turn OWNER TO loomworks_log;
INSERT INTO loomworks.users_turn DEFAULT VALUES ON CONFLICT DO NOTHING;
GRANT SELECT, UPDATE ON loomworks.users_turn TO loomworks_quota;
GRANT SELECT ON loomworks.quota TO loomworks_quota;

-- A row for each connection, so that two agents do not wait for each other's transactions.
CREATE TABLE IF NOT EXISTS loomworks.ai_usage (
    day        date NOT NULL,
    backend    integer NOT NULL,
    operations integer NOT NULL,
    PRIMARY KEY (day, backend)
);
ALTER TABLE loomworks.ai_usage OWNER TO loomworks_log;

-- Users.
-- The condition may call what the tenant made (a type's cast), so it is worked out with the rights of loomworks_quota,
-- which can read and write nothing of ours but the turn.

CREATE OR REPLACE FUNCTION loomworks.count_users(target oid) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    counted bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s WHERE (%s)', target::regclass, (SELECT users_active FROM loomworks.quota))
    INTO counted;
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

CREATE OR REPLACE FUNCTION loomworks.check_users() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    allowed integer;
    condition text;
    more bigint;
    fewer bigint := 0;
    used bigint;
BEGIN
    SELECT max_users, users_active INTO allowed, condition FROM loomworks.quota;
    IF allowed IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format('SELECT count(*) FROM new_rows WHERE (%s)', condition) INTO more;
    IF TG_OP = 'UPDATE' THEN
        EXECUTE format('SELECT count(*) FROM old_rows WHERE (%s)', condition) INTO fewer;
    END IF;
    more := more - fewer;
    IF more <= 0 THEN
        RETURN NULL;
    END IF;
    UPDATE loomworks.users_turn SET turns = turns + 1;
    -- The table that all partitions and heirs belong to.
    SELECT loomworks.count_users(t) INTO used FROM loomworks.lineage(TG_RELID) t
    WHERE NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = t) LIMIT 1;
    IF used > allowed THEN
        RAISE EXCEPTION 'loomworks: this tenant may have % users; % are in use, % are left, % more were asked for',
            allowed, used - more, greatest(allowed - used + more, 0), more
            USING ERRCODE = 'LW429', HINT = 'Deactivate users who are not needed, or ask for a higher limit.';
    END IF;
    RETURN NULL;
END $$;
ALTER FUNCTION loomworks.check_users() OWNER TO loomworks_quota;
REVOKE ALL ON FUNCTION loomworks.check_users() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.count_users(oid) TO loomworks_quota;

-- Whether a table holds users, and if so, its triggers. Called for each table that is recorded.
CREATE OR REPLACE FUNCTION loomworks.watch_users(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    users oid;
BEGIN
    SELECT to_regclass(users_table) INTO users FROM loomworks.quota;
    IF users IS NULL OR users NOT IN (SELECT * FROM loomworks.lineage(target)) THEN
        RETURN;
    END IF;
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

-- AI operations. Counted in the agent's own transaction, so that what is rolled back does not count.
CREATE OR REPLACE FUNCTION loomworks.count_operation() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today CONSTANT date := (statement_timestamp() AT TIME ZONE 'UTC')::date;
    allowed integer;
    used bigint;
BEGIN
    INSERT INTO loomworks.ai_usage (day, backend, operations) VALUES (today, pg_backend_pid(), 1)
    ON CONFLICT (day, backend) DO UPDATE SET operations = ai_usage.operations + 1;
    SELECT max_ai_operations_daily INTO allowed FROM loomworks.quota;
    IF allowed IS NOT NULL THEN
        SELECT sum(operations) INTO used FROM loomworks.ai_usage WHERE day = today;
        IF used > allowed THEN
            RAISE EXCEPTION 'loomworks: AI agents may do % operations a day for this tenant, and have done them', allowed
                USING ERRCODE = 'LW429', HINT = 'It begins anew at midnight UTC. People are not counted.';
        END IF;
    END IF;
    RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION loomworks.count_operation() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION loomworks.count_operation() TO loomworks_log;
CREATE OR REPLACE TRIGGER count_operation AFTER INSERT ON loomworks.operation FOR EACH ROW
    WHEN (NEW.session >= 'lwai_' AND NEW.session < 'lwai`') EXECUTE FUNCTION loomworks.count_operation();

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

CREATE OR REPLACE FUNCTION loomworks.refuse_full_ddl() RETURNS event_trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF session_user = 'loomworks_undo' OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'loomworks: this tenant''s storage is full: % would need more', tg_tag
        USING ERRCODE = 'LW429', HINT = 'Delete what is not needed and run VACUUM FULL on the table, or ask for a higher limit.';
END $$;

-- From here on no table is made, and no other can be written to once block_table() has been called for each.
CREATE OR REPLACE FUNCTION loomworks.block_ddl() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_event_trigger WHERE evtname = 'loomworks_full') THEN
        CREATE EVENT TRIGGER loomworks_full ON ddl_command_start
            WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE MATERIALIZED VIEW', 'REFRESH MATERIALIZED VIEW',
                         'CREATE INDEX', 'ALTER TABLE', 'CREATE FUNCTION', 'CREATE TRIGGER')
            EXECUTE FUNCTION loomworks.refuse_full_ddl();
        ALTER EVENT TRIGGER loomworks_full ENABLE ALWAYS;
    END IF;
END $$;
REVOKE ALL ON FUNCTION loomworks.block_ddl() FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.block_table(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
BEGIN
    PERFORM loomworks.ensure_trigger(target, '!loomworks_full', 'BEFORE INSERT OR UPDATE', 'STATEMENT', 'true', 'loomworks.refuse_full');
    UPDATE loomworks.relation r SET fingerprint = f.now FROM loomworks.fingerprint f WHERE f.relation = target AND r.oid = target;
END $$;
REVOKE ALL ON FUNCTION loomworks.block_table(oid) FROM PUBLIC;

CREATE OR REPLACE FUNCTION loomworks.unblock_table(target oid) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off AS $$
BEGIN
    EXECUTE format('DROP TRIGGER IF EXISTS "!loomworks_full" ON %s', target::regclass);
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
