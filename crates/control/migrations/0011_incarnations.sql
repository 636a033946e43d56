-- Which database a tenant was served from, and since when. A restore makes another database the live one; to go back to
-- before that restore takes the one of that time.
CREATE TABLE tenant_incarnations (
    tenant_id uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    since     timestamptz NOT NULL,
    -- The same moment as a position. NULL: it was before positions were noted.
    since_lsn pg_lsn,
    oid       bigint NOT NULL,
    PRIMARY KEY (tenant_id, since)
);

INSERT INTO tenant_incarnations (tenant_id, since, oid)
SELECT tenant_id, live_since, oid FROM tenant_databases WHERE role IN ('live', 'former');

GRANT SELECT, INSERT, DELETE ON tenant_incarnations TO loomworks_platform;
GRANT SELECT ON tenant_incarnations TO loomworks_api;

ALTER TABLE tenant_incarnations ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_incarnations FORCE ROW LEVEL SECURITY;
CREATE POLICY platform ON tenant_incarnations TO loomworks_platform USING (true);
CREATE POLICY own_tenant ON tenant_incarnations TO loomworks_api USING (tenant_id = (SELECT current_tenant()));

-- A database that was brought back beside the live one, to be looked at for a day.
ALTER TABLE tenant_databases DROP CONSTRAINT tenant_databases_role_check;
ALTER TABLE tenant_databases ADD CONSTRAINT tenant_databases_role_check
    CHECK (role IN ('live', 'former', 'beside', 'dropped'));
