-- How far back a tenant can go, by tier and of its own.

ALTER TABLE tiers
    -- NULL: what the platform is set to.
    ADD COLUMN recovery_days integer CHECK (recovery_days BETWEEN 1 AND 3650);

ALTER TABLE tenants
    -- NULL: the tier's.
    ADD COLUMN recovery_days integer CHECK (recovery_days BETWEEN 1 AND 3650);
