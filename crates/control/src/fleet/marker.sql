-- What fleet migrations were applied to this database. Run by a superuser; may be run again.
--
-- The line is written in the transaction of the migration itself, so that it is there if and only if the migration is:
-- after a crash, and after a restore to a moment before it.
CREATE TABLE IF NOT EXISTS loomworks.fleet_migration (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE loomworks.fleet_migration OWNER TO loomworks_log;

-- False: it was applied before. A second one that comes at the same time waits for the first one's end.
CREATE OR REPLACE FUNCTION loomworks.mark_migration(migration uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF session_user >= 'lwai_' AND session_user < 'lwai`' THEN
        RAISE EXCEPTION 'loomworks: an AI session may not do this' USING ERRCODE = 'LW403';
    END IF;
    INSERT INTO loomworks.fleet_migration (id) VALUES (migration) ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;
ALTER FUNCTION loomworks.mark_migration(uuid) OWNER TO loomworks_log;
-- To everybody who may connect: a copy of the database has another owner, and needs no other grant then.
GRANT EXECUTE ON FUNCTION loomworks.mark_migration(uuid) TO PUBLIC;
