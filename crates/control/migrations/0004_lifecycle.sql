-- The whole life of a tenant: drafts, tiers with their limits, the end of a subscription, the archive, the end.

-- What each tier gives. Operators change it.
CREATE TABLE tiers (
    name                    text PRIMARY KEY CHECK (name IN ('basic', 'pro', 'enterprise')),
    max_users               integer NOT NULL CHECK (max_users > 0),
    max_storage_gb          double precision NOT NULL CHECK (max_storage_gb > 0),
    max_ai_operations_daily integer NOT NULL CHECK (max_ai_operations_daily >= 0),
    updated_at              timestamptz NOT NULL DEFAULT now()
);
INSERT INTO tiers (name, max_users, max_storage_gb, max_ai_operations_daily)
VALUES ('basic', 10, 5.0, 100), ('pro', 50, 50.0, 1000), ('enterprise', 500, 500.0, 10000);
GRANT SELECT ON tiers TO loomworks_platform, loomworks_api;
GRANT UPDATE ON tiers TO loomworks_platform;

ALTER TABLE tenants
    DROP CONSTRAINT tenants_state_check,
    ADD CONSTRAINT tenants_state_check
        CHECK (state IN ('draft', 'provisioning', 'active', 'suspended', 'archived', 'destroyed')),
    ADD CONSTRAINT tenants_tier_fkey FOREIGN KEY (tier) REFERENCES tiers,
    ADD CONSTRAINT tenants_settings_check CHECK (jsonb_typeof(settings) = 'object'),
    -- NULL: the tier's.
    ALTER COLUMN max_users DROP NOT NULL, ALTER COLUMN max_users DROP DEFAULT,
    ALTER COLUMN max_storage_gb DROP NOT NULL, ALTER COLUMN max_storage_gb DROP DEFAULT,
    ALTER COLUMN max_ai_operations_daily DROP NOT NULL, ALTER COLUMN max_ai_operations_daily DROP DEFAULT,
    ADD COLUMN suspended_at timestamptz,
    ADD COLUMN suspended_by text,
    -- Only what a subscription's end has suspended is resumed by its prolongation.
    ADD COLUMN suspension_cause text CHECK (suspension_cause IN ('operator', 'subscription')),
    ADD COLUMN archived_at timestamptz,
    ADD COLUMN archived_until timestamptz,
    ADD COLUMN archived_by text,
    ADD COLUMN archive_reason text,
    -- Its database is closed and there is a snapshot of all that is in it. NULL: somebody may still have come in.
    ADD COLUMN archive_complete_since timestamptz,
    -- Set by the first write that cannot be taken back: from then on the only way is forward.
    ADD COLUMN destroying_since timestamptz,
    ADD COLUMN destroyed_at timestamptz,
    -- What was dropped, so that it can be looked for afterwards.
    ADD COLUMN erased jsonb;

-- Nobody had set limits of its own yet: what is there are the defaults. Row security is forced, also on the owner.
ALTER TABLE tenants NO FORCE ROW LEVEL SECURITY;
UPDATE tenants SET max_users = nullif(max_users, 10), max_storage_gb = nullif(max_storage_gb, 5.0),
    max_ai_operations_daily = nullif(max_ai_operations_daily, 100);
UPDATE tenants SET suspension_cause = 'operator', suspended_at = updated_at WHERE state = 'suspended';
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;

-- The names of a tenant that is gone are free.
ALTER TABLE tenants DROP CONSTRAINT tenants_subdomain_key, DROP CONSTRAINT tenants_database_name_key;
CREATE UNIQUE INDEX tenants_subdomain_key ON tenants (subdomain) WHERE state <> 'destroyed';
CREATE UNIQUE INDEX tenants_database_name_key ON tenants (database_name) WHERE state <> 'destroyed';
CREATE INDEX tenants_by_subdomain ON tenants (subdomain, id);
CREATE INDEX tenants_subscription_expires ON tenants (subscription_expires) WHERE subscription_expires IS NOT NULL;

-- What a tenant was told about the end of its subscription. A new end begins anew.
CREATE TABLE subscription_notices (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    expires   date NOT NULL,
    notice    text NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, expires, notice)
);

-- Everything about a tenant in one archive, encrypted with its data key.
CREATE TABLE exports (
    id           uuid PRIMARY KEY,
    tenant_id    uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    state        text NOT NULL DEFAULT 'making' CHECK (state IN ('making', 'ready', 'failed', 'expired')),
    size_bytes   bigint,
    sha256       text,
    requested_by text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    ready_at     timestamptz,
    expires_at   timestamptz
);
CREATE INDEX exports_of_tenant ON exports (tenant_id, created_at DESC);

GRANT SELECT, INSERT, DELETE ON subscription_notices TO loomworks_platform;
GRANT SELECT ON subscription_notices TO loomworks_api;
GRANT SELECT, INSERT, UPDATE ON exports TO loomworks_platform;
GRANT SELECT, INSERT ON exports TO loomworks_api;

DO $policies$
DECLARE
    protected text;
BEGIN
    FOREACH protected IN ARRAY ARRAY['subscription_notices', 'exports']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', protected);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', protected);
        EXECUTE format('CREATE POLICY platform ON %I TO loomworks_platform USING (true)', protected);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO loomworks_api USING (tenant_id = (SELECT current_tenant()))',
                       protected);
    END LOOP;
END
$policies$;
