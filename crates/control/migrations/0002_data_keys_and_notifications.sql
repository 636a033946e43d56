-- A data key for each tenant, wrapped with the master key. What is encrypted with it (exports, backups, secrets of its
-- own) is unreadable for ever once the row is deleted: that is how a tenant is erased from copies nobody can reach.
CREATE TABLE tenant_data_keys (
    tenant_id  uuid PRIMARY KEY REFERENCES tenants ON DELETE CASCADE,
    wrapped    bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What people should know without having asked: a limit that is nearly reached, a subscription that ends.
CREATE TABLE notifications (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL: for operators only.
    tenant_id uuid REFERENCES tenants ON DELETE CASCADE,
    at        timestamptz NOT NULL DEFAULT now(),
    event     text NOT NULL,
    severity  text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    message   text NOT NULL,
    detail    jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX notifications_of_tenant ON notifications (tenant_id, id DESC);

GRANT SELECT, INSERT, UPDATE, DELETE ON tenant_data_keys TO loomworks_platform;
GRANT SELECT, INSERT, DELETE ON notifications TO loomworks_platform;
GRANT SELECT ON notifications TO loomworks_api;

DO $policies$
DECLARE
    protected text;
BEGIN
    FOREACH protected IN ARRAY ARRAY['tenant_data_keys', 'notifications']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', protected);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', protected);
        EXECUTE format('CREATE POLICY platform ON %I TO loomworks_platform USING (true)', protected);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO loomworks_api USING (tenant_id = (SELECT current_tenant()))',
                       protected);
    END LOOP;
END
$policies$;
