-- The audit log as a chain, tenants' credentials that take turns, the platform's own secrets.

-- Where an act came from: an address and a request, or a job.
ALTER TABLE audit ADD COLUMN origin text NOT NULL DEFAULT '';
-- The transaction that wrote the row. Nobody may name another one: columns that are not granted have their default.
ALTER TABLE audit ADD COLUMN xid xid8 NOT NULL DEFAULT '3';
ALTER TABLE audit ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
CREATE INDEX audit_of_tenant ON audit (tenant_id, id DESC);
CREATE INDEX audit_by_transaction ON audit (xid);

-- A seal for each row, in the order in which they became visible. A row is sealed a moment after it was written, by
-- one sealer at a time, so that no administrative act waits for another one.
CREATE TABLE audit_seals (
    -- Without a gap from 1.
    place     bigint PRIMARY KEY CHECK (place > 0),
    audit_id  bigint NOT NULL UNIQUE,
    -- SHA-256 of the row, of what follows here, and of the hash before it.
    hash      bytea NOT NULL CHECK (octet_length(hash) = 32),
    -- Never before that of the seal before it.
    sealed_at timestamptz NOT NULL,
    -- The transaction that sealed: its number was taken after the rows were read, so whoever wrote with a smaller one
    -- may still become visible, and whoever has a larger one began to write later.
    xid       xid8 NOT NULL DEFAULT pg_current_xact_id()
);

-- The end of the chain.
CREATE TABLE audit_head (
    single    boolean PRIMARY KEY DEFAULT true CHECK (single),
    place     bigint NOT NULL DEFAULT 0,
    hash      bytea NOT NULL DEFAULT decode(repeat('00', 32), 'hex'),
    -- Every transaction before this one has ended, and its rows are sealed.
    horizon   xid8 NOT NULL DEFAULT '3',
    published_at timestamptz
);
INSERT INTO audit_head DEFAULT VALUES;

REVOKE INSERT ON audit FROM loomworks_platform, loomworks_api;
GRANT INSERT (actor, action, tenant_id, detail, origin) ON audit TO loomworks_platform, loomworks_api;
GRANT SELECT, INSERT (place, audit_id, hash, sealed_at) ON audit_seals TO loomworks_platform;
GRANT SELECT, UPDATE ON audit_head TO loomworks_platform;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is only added to', tg_table_name USING ERRCODE = '42501';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_seals EXECUTE FUNCTION refuse_change();

-- A tenant's app has two login roles that take turns; tenants.app_role is the one it is told to use.
ALTER TABLE tenant_credentials
    ADD COLUMN rotated_at            timestamptz NOT NULL DEFAULT now(),
    -- The password of the next role until it is the one in use.
    ADD COLUMN next_password_wrapped bytea,
    -- The role that was in use before, while it may still log in.
    ADD COLUMN retiring_role         text,
    ADD COLUMN retire_after          timestamptz;
CREATE INDEX tenant_credentials_by_age ON tenant_credentials (rotated_at);

-- Secrets of the platform itself.
CREATE TABLE platform_secrets (
    name    text PRIMARY KEY,
    wrapped bytea NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON platform_secrets TO loomworks_platform;
