-- Webhooks: where notifications are sent to, with what they are signed, and what became of each delivery.

-- Set in the transaction that writes the deliveries of a notification. Looked for by "not yet", not by a position in
-- the order of ids: a transaction that commits late is found late, and not passed over. What is there already was
-- raised before anybody could have registered for it.
ALTER TABLE notifications ADD COLUMN fanned_out_at timestamptz DEFAULT now();
ALTER TABLE notifications ALTER COLUMN fanned_out_at DROP DEFAULT;
CREATE INDEX notifications_to_fan_out ON notifications (id) WHERE fanned_out_at IS NULL;
GRANT UPDATE (fanned_out_at) ON notifications TO loomworks_platform;

CREATE TABLE webhooks (
    id            uuid PRIMARY KEY,
    -- NULL: the platform's, which gets the notifications of all tenants and those for operators.
    tenant_id     uuid REFERENCES tenants ON DELETE CASCADE,
    url           text NOT NULL CHECK (char_length(url) BETWEEN 8 AND 2000),
    events        text[] NOT NULL CHECK (cardinality(events) BETWEEN 1 AND 50),
    description   text NOT NULL DEFAULT '' CHECK (char_length(description) <= 255),
    state         text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'failing', 'disabled')),
    -- Attempts that failed since one succeeded, of all its deliveries, and since when.
    failures      integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    requested_by  text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (id, tenant_id)
);
CREATE INDEX webhooks_of_tenant ON webhooks (tenant_id, created_at);

-- Apart from webhooks, so that a role which may read webhooks cannot read this. Several while a new one takes over.
CREATE TABLE webhook_secrets (
    id             uuid PRIMARY KEY,
    webhook_id     uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    tenant_id      uuid REFERENCES tenants ON DELETE CASCADE,
    secret_wrapped bytea NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- NULL: the present one.
    ends_at        timestamptz,
    -- Row security does not look at what is referred to: nobody adds a secret to another tenant's webhook.
    FOREIGN KEY (webhook_id, tenant_id) REFERENCES webhooks (id, tenant_id) ON DELETE CASCADE
);
CREATE INDEX webhook_secrets_of_webhook ON webhook_secrets (webhook_id, created_at DESC);

CREATE TABLE webhook_deliveries (
    -- Told to the receiver with every attempt, so that it can tell a repetition from something new.
    id              uuid PRIMARY KEY,
    -- The order in which they are listed.
    number          bigint GENERATED ALWAYS AS IDENTITY,
    webhook_id      uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    -- The webhook's tenant, not the notification's.
    tenant_id       uuid REFERENCES tenants ON DELETE CASCADE,
    -- The notification's, also when it goes to a webhook of the platform: what that was told goes with the tenant.
    about_tenant    uuid,
    -- NULL: a test. No reference: a delivery may outlive its notification.
    notification_id bigint,
    event           text NOT NULL,
    -- The same bytes at every attempt, whatever has been renamed or removed since.
    body            text NOT NULL,
    state           text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'failed')),
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz DEFAULT now(),
    last_attempt_at timestamptz,
    http_status     integer,
    duration_ms     integer,
    error           text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    finished_at     timestamptz,
    UNIQUE (webhook_id, notification_id),
    FOREIGN KEY (webhook_id, tenant_id) REFERENCES webhooks (id, tenant_id) ON DELETE CASCADE
);
CREATE INDEX webhook_deliveries_newest ON webhook_deliveries (webhook_id, number DESC);
-- One test at a time.
CREATE UNIQUE INDEX webhook_deliveries_one_test ON webhook_deliveries (webhook_id)
    WHERE notification_id IS NULL AND state = 'waiting';
CREATE INDEX webhook_deliveries_about ON webhook_deliveries (about_tenant);
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at) WHERE state = 'waiting';

GRANT SELECT, INSERT, UPDATE, DELETE ON webhooks, webhook_secrets, webhook_deliveries TO loomworks_platform;

-- A tenant's own request registers, looks and removes. It reads no secret, not even a wrapped one, and says of no
-- delivery what became of it.
GRANT SELECT, DELETE ON webhooks TO loomworks_api;
GRANT INSERT (id, tenant_id, url, events, description, requested_by) ON webhooks TO loomworks_api;
GRANT SELECT (id, webhook_id, tenant_id, created_at, ends_at), UPDATE (ends_at), DELETE ON webhook_secrets TO loomworks_api;
GRANT INSERT (id, webhook_id, tenant_id, secret_wrapped) ON webhook_secrets TO loomworks_api;
GRANT SELECT ON webhook_deliveries TO loomworks_api;
GRANT INSERT (id, webhook_id, tenant_id, event, body) ON webhook_deliveries TO loomworks_api;

DO $policies$
DECLARE
    protected text;
BEGIN
    FOREACH protected IN ARRAY ARRAY['webhooks', 'webhook_secrets', 'webhook_deliveries']
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', protected);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', protected);
        EXECUTE format('CREATE POLICY platform ON %I TO loomworks_platform USING (true)', protected);
        EXECUTE format('CREATE POLICY own_tenant ON %I TO loomworks_api USING (tenant_id = (SELECT current_tenant()))',
                       protected);
    END LOOP;
END
$policies$;
