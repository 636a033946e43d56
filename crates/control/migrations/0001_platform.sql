-- The management database. Run as loomworks_owner, which nobody logs in as.
--
-- Two roles use it: loomworks_platform (worker, reconcilers, operators' requests) sees every row;
-- loomworks_api (tenants' requests) sees the rows of the tenant that the transaction names in app.tenant_id, and
-- can neither switch that off nor own anything here. Every table with a tenant_id has row security forced.

GRANT USAGE ON SCHEMA public TO loomworks_platform, loomworks_api;

-- After SET LOCAL has ended the setting is '' and not NULL, so both mean "no tenant".
CREATE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('app.tenant_id', true), '')::uuid;

CREATE TABLE tenants (
    id                      uuid PRIMARY KEY,
    name                    text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    subdomain               text NOT NULL UNIQUE CHECK (subdomain ~ '^[a-z][a-z0-9-]{2,62}$'),
    database_name           text NOT NULL UNIQUE,
    state                   text NOT NULL DEFAULT 'provisioning'
                            CHECK (state IN ('provisioning', 'active', 'suspended')),
    suspension_reason       text,
    profile                 text NOT NULL,
    tier                    text NOT NULL DEFAULT 'basic' CHECK (tier IN ('basic', 'pro', 'enterprise')),
    subscription_expires    date,
    max_users               integer NOT NULL DEFAULT 10,
    max_storage_gb          double precision NOT NULL DEFAULT 5.0,
    max_ai_operations_daily integer NOT NULL DEFAULT 100,
    settings                jsonb NOT NULL DEFAULT '{}',
    owner_role              text NOT NULL UNIQUE,
    app_role                text NOT NULL UNIQUE,
    -- The job for which the gateways hold this tenant's requests.
    held_by                 uuid,
    created_at              timestamptz NOT NULL DEFAULT now(),
    updated_at              timestamptz NOT NULL DEFAULT now()
);

-- Apart from tenants, so that a role which may read tenants cannot read this.
CREATE TABLE tenant_credentials (
    tenant_id            uuid PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    app_password_wrapped bytea NOT NULL
);

-- Every database a tenant has had: the one that is served, and former ones that a restore replaced.
CREATE TABLE tenant_databases (
    tenant_id      uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    oid            bigint NOT NULL,
    name           text NOT NULL,
    role           text NOT NULL CHECK (role IN ('live', 'former', 'dropped')),
    live_since     timestamptz NOT NULL DEFAULT now(),
    former_since   timestamptz,
    drop_after     timestamptz,
    PRIMARY KEY (tenant_id, oid)
);
CREATE UNIQUE INDEX tenant_databases_one_live ON tenant_databases (tenant_id) WHERE role = 'live';

CREATE TABLE jobs (
    id           uuid PRIMARY KEY,
    tenant_id    uuid REFERENCES tenants ON DELETE CASCADE,
    kind         text NOT NULL,
    -- Of the unfinished jobs one a key: who asks for the same thing again finds the first.
    dedup_key    text NOT NULL,
    work         jsonb NOT NULL,
    step         jsonb,
    state        text NOT NULL DEFAULT 'waiting'
                 CHECK (state IN ('waiting', 'running', 'succeeded', 'failed')),
    run_at       timestamptz NOT NULL DEFAULT now(),
    -- Steps that are behind it.
    steps_done   integer NOT NULL DEFAULT 0,
    -- Tries of the present step.
    attempts     integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL DEFAULT 20,
    -- Rises with every claim. A worker that lost its lease holds an older number and can save nothing.
    fence        bigint NOT NULL DEFAULT 0,
    node         text,
    lease_until  timestamptz,
    percent      smallint NOT NULL DEFAULT 0,
    progress     text NOT NULL DEFAULT 'waiting',
    error        text,
    hint         text,
    result       jsonb,
    requested_by text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz
);
CREATE UNIQUE INDEX jobs_one_unfinished ON jobs (dedup_key) WHERE state IN ('waiting', 'running');
CREATE INDEX jobs_claimable ON jobs (run_at) WHERE state IN ('waiting', 'running');
CREATE INDEX jobs_of_tenant ON jobs (tenant_id, created_at DESC);

CREATE TABLE snapshots (
    id             uuid PRIMARY KEY,
    tenant_id      uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    name           text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    state          text NOT NULL DEFAULT 'creating'
                   CHECK (state IN ('creating', 'ready', 'restoring', 'failed', 'expired')),
    snapshot_type  text NOT NULL CHECK (snapshot_type IN ('auto', 'manual', 'pre_ai')),
    -- Restored is everything before this position.
    wal_position   pg_lsn,
    wal_file       text,
    base_backup_id text,
    size_bytes     bigint,
    requested_by   text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    ready_at       timestamptz,
    expires_at     timestamptz NOT NULL DEFAULT now() + interval '30 days'
);
CREATE INDEX snapshots_of_tenant ON snapshots (tenant_id, created_at DESC);

CREATE TABLE ai_sessions (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    agent        text NOT NULL CHECK (char_length(agent) BETWEEN 1 AND 255),
    purpose      text NOT NULL DEFAULT '',
    role         text NOT NULL UNIQUE,
    state        text NOT NULL DEFAULT 'opening' CHECK (state IN ('opening', 'open', 'closing', 'closed')),
    snapshot_id  uuid REFERENCES snapshots,
    requested_by text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    closed_at    timestamptz
);
CREATE INDEX ai_sessions_of_tenant ON ai_sessions (tenant_id, created_at DESC);

CREATE TABLE api_keys (
    id           uuid PRIMARY KEY,
    -- NULL: a key of the platform's own people and gateways.
    tenant_id    uuid REFERENCES tenants ON DELETE CASCADE,
    scope        text NOT NULL CHECK (scope IN ('operator', 'gateway', 'tenant_admin')),
    name         text NOT NULL,
    prefix       text NOT NULL,
    hash         text NOT NULL,
    -- Keyed with a pepper that is not in this database: finds the row, and an unknown key costs no bcrypt.
    mac          bytea NOT NULL UNIQUE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    revoked_at   timestamptz,
    CHECK ((scope = 'tenant_admin') = (tenant_id IS NOT NULL))
);

CREATE TABLE audit (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    actor     text NOT NULL,
    action    text NOT NULL,
    tenant_id uuid,
    detail    jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE route_generation (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single),
    generation bigint NOT NULL
);
INSERT INTO route_generation (generation) VALUES (1);

CREATE TABLE gateways (
    name       text PRIMARY KEY,
    generation bigint NOT NULL,
    seen_at    timestamptz NOT NULL DEFAULT now()
);

-- What the platform may do.
GRANT SELECT, INSERT, UPDATE ON tenants, tenant_credentials, tenant_databases, jobs, snapshots, ai_sessions, api_keys,
    route_generation TO loomworks_platform;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateways TO loomworks_platform;
GRANT SELECT, INSERT ON audit TO loomworks_platform;

-- What a tenant's own request may do: read what is its own, and ask.
GRANT SELECT ON tenants, tenant_databases, jobs, snapshots, ai_sessions, audit TO loomworks_api;
GRANT INSERT ON jobs, snapshots, ai_sessions, audit TO loomworks_api;

DO $policies$
DECLARE
    protected text;
BEGIN
    FOREACH protected IN ARRAY ARRAY['tenants', 'tenant_credentials', 'tenant_databases', 'jobs', 'snapshots',
                                     'ai_sessions', 'api_keys', 'audit']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', protected);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', protected);
        EXECUTE format('CREATE POLICY platform ON %I TO loomworks_platform USING (true)', protected);
        -- The sub-select is worked out once a statement, not once a row.
        EXECUTE format('CREATE POLICY own_tenant ON %I TO loomworks_api USING (%I = (SELECT current_tenant()))',
                       protected, CASE protected WHEN 'tenants' THEN 'id' ELSE 'tenant_id' END);
    END LOOP;
END
$policies$;
