-- Roles of the cluster. Several databases are set up at the same time, so each is made by whoever comes first.
--
-- As the writer and as the counter runs what the tenant has written: constraints, defaults, casts. Neither logs in, and
-- each is reached through a function alone: whoever is inside can take no other role, and grant nobody this one.
DO $$
BEGIN
    BEGIN
        CREATE ROLE loomworks_log NOLOGIN BYPASSRLS;
        -- TRUNCATE's copy must read every row.
        GRANT pg_read_all_data TO loomworks_log;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    BEGIN
        -- Reads the log and decides. What it is connected as could be granted to others by whoever runs as it, so nothing
        -- of the tenant's does.
        CREATE ROLE loomworks_undo LOGIN BYPASSRLS;
        -- Silences the app's triggers during an undo; no superuser is needed for that.
        GRANT SET ON PARAMETER session_replication_role TO loomworks_undo;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    BEGIN
        -- Reads and writes the recorded tables for an undo. It is granted these and nothing of ours.
        CREATE ROLE loomworks_writer NOLOGIN BYPASSRLS;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    BEGIN
        -- Counts users. It may read the tables of users alone.
        CREATE ROLE loomworks_quota NOLOGIN BYPASSRLS;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    -- What an older program has given them.
    BEGIN
        IF pg_has_role('loomworks_undo', 'pg_write_all_data', 'MEMBER') THEN
            REVOKE pg_write_all_data FROM loomworks_undo;
        END IF;
        IF pg_has_role('loomworks_quota', 'pg_read_all_data', 'MEMBER') THEN
            REVOKE pg_read_all_data FROM loomworks_quota;
        END IF;
    EXCEPTION WHEN internal_error THEN
        -- Somebody else is at it.
        NULL;
    END;
END $$;
