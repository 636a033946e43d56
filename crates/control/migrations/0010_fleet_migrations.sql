-- One SQL migration over the databases of many tenants.
CREATE TABLE fleet_migrations (
    id                        uuid PRIMARY KEY,
    name                      text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    sql                       text NOT NULL,
    -- What was asked for. Which tenants that meant is written down beside it, once.
    selection                 jsonb NOT NULL,
    canaries                  integer NOT NULL CHECK (canaries >= 0),
    wave_size                 integer NOT NULL CHECK (wave_size >= 1),
    concurrency               integer NOT NULL CHECK (concurrency BETWEEN 1 AND 32),
    snapshot_before           boolean NOT NULL,
    statement_timeout_seconds integer NOT NULL CHECK (statement_timeout_seconds >= 1),
    lock_timeout_seconds      integer NOT NULL CHECK (lock_timeout_seconds >= 1),
    busy_timeout_seconds      integer NOT NULL CHECK (busy_timeout_seconds >= 0),
    -- 0: never.
    stop_after_failures       integer NOT NULL CHECK (stop_after_failures >= 0),
    pause_after_canary        boolean NOT NULL,
    state                     text NOT NULL DEFAULT 'running'
                              CHECK (state IN ('running', 'paused', 'stopped', 'succeeded', 'failed', 'cancelled')),
    -- Why it is in that state, when nobody asked for it.
    reason                    text,
    -- Failures that somebody has seen and went on in spite of.
    failures_accepted         integer NOT NULL DEFAULT 0,
    requested_by              text NOT NULL,
    created_at                timestamptz NOT NULL DEFAULT now(),
    finished_at               timestamptz
);
CREATE INDEX fleet_migrations_newest ON fleet_migrations (created_at DESC, id DESC);

-- A tenant of such a migration. That it was applied is written in the tenant's own database, in the transaction that
-- applied it; this row is what the platform knows of it.
CREATE TABLE fleet_migration_tenants (
    migration_id uuid NOT NULL REFERENCES fleet_migrations ON DELETE CASCADE,
    tenant_id    uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    -- Its turn.
    number       integer NOT NULL,
    -- 0: a canary. NULL: skipped from the beginning.
    wave         integer,
    state        text NOT NULL DEFAULT 'waiting'
                 CHECK (state IN ('waiting', 'running', 'applied', 'failed', 'skipped')),
    -- Rises with every try. Who holds an older number can record nothing.
    attempt      integer NOT NULL DEFAULT 0,
    -- Since when it could not be worked with, and when that is looked at again.
    busy_since   timestamptz,
    retry_at     timestamptz,
    error        text,
    hint         text,
    sqlstate     text,
    milliseconds bigint,
    snapshot_id  uuid REFERENCES snapshots,
    -- The database it was applied to. A restore puts another one in its place.
    database_oid bigint,
    finished_at  timestamptz,
    PRIMARY KEY (migration_id, tenant_id),
    UNIQUE (migration_id, number)
);
CREATE INDEX fleet_migration_tenants_waiting ON fleet_migration_tenants (migration_id, wave, number) WHERE state = 'waiting';
CREATE INDEX fleet_migration_tenants_of_tenant ON fleet_migration_tenants (tenant_id);

GRANT SELECT, INSERT, UPDATE ON fleet_migrations, fleet_migration_tenants TO loomworks_platform;

ALTER TABLE fleet_migration_tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE fleet_migration_tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY platform ON fleet_migration_tenants TO loomworks_platform USING (true);
CREATE POLICY own_tenant ON fleet_migration_tenants TO loomworks_api USING (tenant_id = (SELECT current_tenant()));
