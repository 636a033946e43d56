-- After a copy by pg_dump and pg_restore: tables and columns are found again by their names.
-- A table that is no more keeps its name without a fingerprint, and another one may have taken the name.
UPDATE loomworks.relation SET oid = NULL;
UPDATE loomworks.relation SET oid = to_regclass(name) WHERE fingerprint IS NOT NULL;
UPDATE loomworks.attribute a SET attnum = (
    SELECT p.attnum FROM loomworks.relation r JOIN pg_attribute p ON p.attrelid = r.oid
    WHERE r.id = a.relation_id AND p.attname = a.name AND NOT p.attisdropped)
WHERE attnum IS NOT NULL;
SELECT loomworks.enrol_all();
