-- People who run the platform and log in themselves. Nothing here belongs to a tenant, so tenants' role gets nothing.
CREATE TABLE operators (
    id            uuid PRIMARY KEY,
    name          text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 100),
    -- As people are found by it: lower case, so that one address is one account.
    email         text NOT NULL UNIQUE CHECK (email = lower(email)),
    -- argon2id, with its parameters and salt. NULL: this one comes by OpenID Connect only.
    password_hash text,
    permissions   text[] NOT NULL
                  CHECK (permissions <@ ARRAY['read', 'work', 'manage'] AND cardinality(permissions) > 0),
    -- Who the provider says it is, noted at the first log-in: an address that is given to somebody else later does
    -- not carry the account with it.
    oidc_issuer   text,
    oidc_subject  text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    last_login_at timestamptz,
    disabled_at   timestamptz,
    CHECK ((oidc_issuer IS NULL) = (oidc_subject IS NULL)),
    UNIQUE (oidc_issuer, oidc_subject)
);

-- One row for each browser in which an operator is logged in. Logging out, revoking and disabling delete it; the audit
-- log remembers.
CREATE TABLE operator_sessions (
    id             uuid PRIMARY KEY,
    operator_id    uuid NOT NULL REFERENCES operators ON DELETE CASCADE,
    -- SHA-256 of a token of 256 random bits: who reads this table can log in as nobody.
    token_hash     bytea NOT NULL UNIQUE,
    method         text NOT NULL CHECK (method IN ('password', 'oidc')),
    client_address text NOT NULL,
    user_agent     text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_seen_at   timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL
);
CREATE INDEX operator_sessions_of_operator ON operator_sessions (operator_id, created_at DESC);
CREATE INDEX operator_sessions_expired ON operator_sessions (expires_at);

GRANT SELECT, INSERT, UPDATE ON operators TO loomworks_platform;
GRANT SELECT, INSERT, UPDATE, DELETE ON operator_sessions TO loomworks_platform;
