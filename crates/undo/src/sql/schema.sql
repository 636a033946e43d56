-- The operation log. Run by a superuser in a tenant's database; may be run again.
--
-- Everything but the event triggers belongs to loomworks_log, as whom nobody logs in and which grants nothing to those
-- who work in the database: an agent can neither read nor write here. What it changes is written by functions that run
-- as loomworks_log, in the agent's own transaction.

CREATE SCHEMA IF NOT EXISTS loomworks AUTHORIZATION loomworks_log;
-- USAGE lets nobody see anything; the event triggers' functions are found through it.
GRANT USAGE ON SCHEMA loomworks TO PUBLIC;

CREATE SEQUENCE IF NOT EXISTS loomworks.row_seq;
ALTER SEQUENCE loomworks.row_seq OWNER TO loomworks_log;

-- One operation is what one statement of a client did in one transaction.
CREATE TABLE IF NOT EXISTS loomworks.operation (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid          xid8 NOT NULL,
    -- The rows it changed carry its xid and a moment from "at" to "until". An undo is several statements.
    at           timestamptz NOT NULL,
    until        timestamptz NOT NULL,
    session      name NOT NULL,
    kind         text NOT NULL DEFAULT 'change' CHECK (kind IN ('change', 'ddl', 'truncate', 'undo')),
    statement    text NOT NULL DEFAULT '',
    -- Before it was committed: a restore to here is a restore to just before it.
    lsn          pg_lsn NOT NULL,
    -- The tables it may have changed rows of: those that its statements named, and their partitions and heirs.
    relations    integer[] NOT NULL DEFAULT '{}',
    -- What rows cannot bring back: the names of objects that were dropped, of tables that were too large to copy.
    note         jsonb NOT NULL DEFAULT '{}',
    undo_of      bigint[] NOT NULL DEFAULT '{}',
    undone_by    bigint,
    requested_by text,
    UNIQUE (xid, at)
);
ALTER TABLE loomworks.operation OWNER TO loomworks_log;

-- A table that is recorded. Its number names its row log and its function, because object ids change when a database
-- is copied.
CREATE TABLE IF NOT EXISTS loomworks.relation (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The table, while there is one.
    oid         oid UNIQUE,
    -- Its last known name, quoted; finds it again after a copy.
    name        text NOT NULL,
    -- Its triggers as they must be.
    fingerprint text
);
ALTER TABLE loomworks.relation OWNER TO loomworks_log;

-- A column that is recorded: its slot names the row log's pair o<slot>, n<slot>.
CREATE TABLE IF NOT EXISTS loomworks.attribute (
    -- Of a row of loomworks.relation, of which none is ever deleted. No foreign key: to check it would cost more than to
    -- write the row, in each tenant's database when an app gets a column.
    relation_id integer NOT NULL,
    slot        integer NOT NULL,
    -- The column, while there is one.
    attnum      smallint,
    name        name NOT NULL,
    type        text NOT NULL,
    -- Rows logged before this number know nothing of the column.
    since       bigint NOT NULL,
    PRIMARY KEY (relation_id, slot)
);
ALTER TABLE loomworks.attribute DROP CONSTRAINT IF EXISTS attribute_relation_id_fkey;
ALTER TABLE loomworks.attribute OWNER TO loomworks_log;
