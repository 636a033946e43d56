-- Roles of the cluster. Several databases are set up at the same time, so each is made by whoever comes first.
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
        CREATE ROLE loomworks_undo LOGIN BYPASSRLS;
        -- Not a member of the owners: constraints and defaults run the tenant's own functions with this role's rights,
        -- and an owner's rights reach other databases' settings and grants.
        GRANT pg_write_all_data TO loomworks_undo;
        -- Silences the app's triggers during an undo; no superuser is needed for that.
        GRANT SET ON PARAMETER session_replication_role TO loomworks_undo;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    BEGIN
        -- Counts users by a condition that may call what the tenant made. It may read what the tenant may read anyway.
        CREATE ROLE loomworks_quota NOLOGIN BYPASSRLS;
        GRANT pg_read_all_data TO loomworks_quota;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
END $$;
