-- Databases that are made before somebody wants them, and what a tenant uses of its limits.

-- The content of a profile, filled once into a database that tenants' databases are copied from. Its name tells the
-- profile and a checksum of all that went into it, so a changed profile has another one.
CREATE TABLE templates (
    -- The database's, and its owner role's.
    name       text PRIMARY KEY,
    profile    text NOT NULL,
    state      text NOT NULL DEFAULT 'building' CHECK (state IN ('building', 'ready', 'failed')),
    created_at timestamptz NOT NULL DEFAULT now(),
    ready_at   timestamptz
);

-- Copies of templates that wait for a tenant.
CREATE TABLE pool_databases (
    -- The database's, and its owner role's, until a tenant gets them.
    name       text PRIMARY KEY,
    template   text NOT NULL,
    state      text NOT NULL DEFAULT 'making' CHECK (state IN ('making', 'ready', 'claimed')),
    oid        bigint,
    -- Who claimed it. The row goes when the tenant is active.
    tenant_id  uuid UNIQUE REFERENCES tenants ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((state = 'claimed') = (tenant_id IS NOT NULL)),
    CHECK (state = 'making' OR oid IS NOT NULL)
);
CREATE INDEX pool_databases_ready ON pool_databases (template, created_at) WHERE state = 'ready';

-- The app's first user, until he is made. Then the password is gone from here.
CREATE TABLE tenant_admins (
    tenant_id        uuid PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    login            text NOT NULL CHECK (char_length(login) BETWEEN 1 AND 255),
    password_wrapped bytea,
    made_at          timestamptz,
    CHECK ((password_wrapped IS NULL) = (made_at IS NOT NULL))
);

CREATE TABLE tenant_usage (
    tenant_id     uuid PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    storage_bytes bigint NOT NULL DEFAULT 0,
    storage_level text NOT NULL DEFAULT 'ok' CHECK (storage_level IN ('ok', 'nearly_full', 'full')),
    measured_at   timestamptz NOT NULL DEFAULT now(),
    -- What the tenant's database was last told of its limits, which database that was, and what is installed in it.
    applied       jsonb,
    -- Of people in the app, as they were told last.
    users_level   text NOT NULL DEFAULT 'ok' CHECK (users_level IN ('ok', 'nearly_full', 'full')),
    -- The last day (UTC) of which it was told that all AI operations were used up.
    ai_used_up_on date,
    -- Rows written in the database until users and AI operations were counted last. NULL: they are to be counted.
    writes        bigint
);
CREATE INDEX tenant_usage_rota ON tenant_usage (measured_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON templates, pool_databases, tenant_admins, tenant_usage
    TO loomworks_platform;
GRANT SELECT ON tenant_usage TO loomworks_api;

DO $policies$
DECLARE
    protected text;
BEGIN
    FOREACH protected IN ARRAY ARRAY['pool_databases', 'tenant_admins', 'tenant_usage']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', protected);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', protected);
        EXECUTE format('CREATE POLICY platform ON %I TO loomworks_platform USING (true)', protected);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO loomworks_api USING (tenant_id = (SELECT current_tenant()))',
                       protected);
    END LOOP;
END
$policies$;
