-- How much was changed in a tenant's database since its last snapshot.

ALTER TABLE tenant_usage
    -- From where changed rows are counted: in which database, how many PostgreSQL had counted there, and since when. NULL:
    -- nobody has looked yet.
    ADD COLUMN changes_oid bigint,
    ADD COLUMN changes_rows bigint,
    ADD COLUMN changes_since timestamptz,
    ADD CONSTRAINT tenant_usage_changes_check
        CHECK ((changes_oid IS NULL) = (changes_rows IS NULL) AND (changes_oid IS NULL) = (changes_since IS NULL));
