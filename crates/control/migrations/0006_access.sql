-- Rights and lifetimes of API keys, and answers that are kept for whoever asks twice.

-- API keys -------------------------------------------------------------------------------------------------------

ALTER TABLE api_keys
    ADD COLUMN permissions  text[] NOT NULL DEFAULT '{}'
                            CHECK (permissions <@ ARRAY['read', 'work', 'manage']),
    ADD COLUMN environment  text NOT NULL DEFAULT 'live' CHECK (environment IN ('live', 'test', 'dev')),
    ADD COLUMN created_by   text NOT NULL DEFAULT 'loomworks',
    ADD COLUMN expires_at   timestamptz,
    -- To the minute: written in batches, never by the request that uses the key.
    ADD COLUMN last_used_at timestamptz,
    -- When people were told that it ends soon.
    ADD COLUMN end_told_at  timestamptz,
    -- The key that this one was made to replace.
    ADD COLUMN replaces     uuid REFERENCES api_keys ON DELETE SET NULL;

UPDATE api_keys SET environment = split_part(prefix, '_', 2);
UPDATE api_keys SET permissions = ARRAY['read', 'work', 'manage'] WHERE scope <> 'gateway';

ALTER TABLE api_keys DROP CONSTRAINT api_keys_scope_check, DROP CONSTRAINT api_keys_check;
ALTER TABLE api_keys
    ADD CONSTRAINT api_keys_scope_check CHECK (scope IN ('operator', 'gateway', 'tenant_admin', 'tenant_user')),
    ADD CONSTRAINT api_keys_scope_of_tenant CHECK ((scope IN ('tenant_admin', 'tenant_user')) = (tenant_id IS NOT NULL)),
    ADD CONSTRAINT api_keys_permissions_of_scope CHECK (
        CASE scope WHEN 'gateway' THEN permissions = '{}' WHEN 'tenant_user' THEN NOT 'manage' = ANY (permissions)
                   ELSE true END);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id, created_at DESC, id DESC);
CREATE INDEX api_keys_that_replace ON api_keys (replaces) WHERE replaces IS NOT NULL;

-- A tenant's own people look after their own keys. What proves a key (hash, mac) they can write and not read.
GRANT SELECT (id, tenant_id, scope, name, prefix, permissions, environment, created_by, created_at, revoked_at,
              expires_at, last_used_at, replaces),
      INSERT, UPDATE (revoked_at, expires_at)
    ON api_keys TO loomworks_api;

-- Every process that believes a key is told when it changes, by whatever way it was changed. Only then: whatever is
-- announced makes all of them look again.
CREATE FUNCTION announce_api_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('loomworks_keys', OLD.id::text);
    RETURN NULL;
END
$$;
CREATE TRIGGER announce_api_key
    AFTER UPDATE OF tenant_id, scope, permissions, hash, mac, revoked_at, expires_at ON api_keys
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION announce_api_key();
CREATE TRIGGER announce_api_key_gone
    AFTER DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION announce_api_key();

-- Idempotency keys -------------------------------------------------------------------------------------------------

CREATE TABLE idempotency_keys (
    caller         text NOT NULL,
    key            text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 255),
    request        text NOT NULL,
    -- Keyed with a secret outside the database: bodies hold passwords, and those can be guessed.
    body_mac       bytea NOT NULL,
    -- Who carries the request out, and how long nobody else may.
    attempt        uuid NOT NULL,
    lease_until    timestamptz NOT NULL,
    -- Written by the transaction that did what was asked: from then on it is not done again.
    effect_at      timestamptz,
    -- The answer, wrapped: it may hold a secret that is shown once.
    answer_wrapped bytea,
    -- The tenant that it was about, as far as it was about one: the answer goes with it.
    about_tenant   uuid,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO loomworks_platform;

-- For tenants' own transactions, which may not see the table: notes that the attempt takes effect. NULL: it may not any
-- more, another one has begun.
CREATE FUNCTION note_idempotent_effect(the_caller text, the_key text, the_attempt uuid, the_tenant uuid) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE public.idempotency_keys SET effect_at = now(), about_tenant = coalesce(about_tenant, the_tenant)
    WHERE caller = the_caller AND key = the_key AND attempt = the_attempt AND answer_wrapped IS NULL
    RETURNING true
$$;
REVOKE ALL ON FUNCTION note_idempotent_effect(text, text, uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION note_idempotent_effect(text, text, uuid, uuid) TO loomworks_platform, loomworks_api;
