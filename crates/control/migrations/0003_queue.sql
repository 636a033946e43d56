-- The queue in full: three queues, fair among tenants, cancelling, schedules.

ALTER TABLE jobs
    ADD queue text NOT NULL DEFAULT 'default' CHECK (queue IN ('high_priority', 'default', 'low_priority')),
    ADD cancel_requested_at timestamptz,
    -- Whose turn it is counted as; jobs of no tenant count as one tenant's.
    ADD tenant_key uuid NOT NULL GENERATED ALWAYS AS (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000')) STORED,
    DROP CONSTRAINT jobs_state_check,
    ADD CONSTRAINT jobs_state_check
        CHECK (state IN ('waiting', 'running', 'succeeded', 'failed', 'cancelled'));

-- Rows change several times and end soon: room on their pages, and swept early.
ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05);

DROP INDEX jobs_claimable;
-- Its first entry of each queue and tenant is that tenant's oldest job.
CREATE INDEX jobs_waiting ON jobs (queue, tenant_key, run_at, created_at) WHERE state = 'waiting';
CREATE INDEX jobs_running ON jobs (lease_until) WHERE state = 'running';
CREATE INDEX jobs_newest ON jobs (created_at DESC, id DESC);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX notifications_oldest ON notifications (at);

-- When a tenant was last given a turn in a queue. Written by claims only, so who enqueues waits for nobody.
CREATE TABLE job_turns (
    queue      text NOT NULL,
    tenant_key uuid NOT NULL,
    served_at  timestamptz NOT NULL,
    PRIMARY KEY (queue, tenant_key)
) WITH (fillfactor = 50);

-- Claims up to `wanted` jobs for a node. `shares` says how many of them each queue is drawn for, in the order
-- high_priority, default, low_priority; what a queue cannot use it gives away. In a queue the tenant that was served
-- longest ago comes first, with its oldest job; no tenant has more than `per_tenant` jobs running, and the node no
-- more than `of_no_tenant` that belong to none: those take long, and tenants are not to wait for all of them.
--
-- One function and so one round trip: a worker that is stopped in the middle holds no lock.
CREATE FUNCTION claim_jobs(node_name text, wanted integer, shares integer[], lease_seconds double precision,
                           per_tenant integer, of_no_tenant integer)
    RETURNS SETOF jobs LANGUAGE plpgsql
    -- The tables are small one moment and large the next: never a plan that reads all of them.
    SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    moment  timestamptz;
    claimed uuid[];
BEGIN
    -- One at a time, so that turns and limits are exact. Released after the claims have become visible.
    PERFORM pg_advisory_xact_lock(hashtextextended('loomworks: claim jobs', 0));
    moment := clock_timestamp();

    -- Whose worker has fallen silent waits again, before all others of its tenant. A first time at once; one that was
    -- cut off before may be what ends its workers, so it is left alone for a while, and those that were only beside it
    -- get done meanwhile. For four seconds at most: with the lease that is less than the 15 seconds within which every
    -- job is in hand again.
    UPDATE jobs SET state = 'waiting', lease_until = NULL, run_at = 'epoch'
    WHERE id IN (SELECT silent.id FROM jobs silent
                 WHERE silent.state = 'running' AND silent.lease_until < moment
                     AND (silent.attempts <= 1 OR silent.lease_until < moment - make_interval(secs =>
                         least(0.1 * 2 ^ least(silent.attempts, 9), 3)
                             * (0.7 + 0.6 * (hashtext(silent.id::text) & 255) / 255)))
                 ORDER BY silent.lease_until LIMIT 1000 FOR UPDATE SKIP LOCKED);

    WITH RECURSIVE head AS (
        -- From tenant to tenant through the index: a step for each tenant that waits, however many jobs it has.
        (SELECT j.queue, j.tenant_key, j.run_at FROM jobs j WHERE j.state = 'waiting'
         ORDER BY j.queue, j.tenant_key, j.run_at LIMIT 1)
        UNION ALL
        SELECT following.* FROM head CROSS JOIN LATERAL (
            SELECT j.queue, j.tenant_key, j.run_at FROM jobs j
            WHERE j.state = 'waiting' AND (j.queue, j.tenant_key) > (head.queue, head.tenant_key)
            ORDER BY j.queue, j.tenant_key, j.run_at LIMIT 1) following
    ), busy AS (
        SELECT j.tenant_key, count(*) AS jobs, count(*) FILTER (WHERE j.node = node_name) AS here
        FROM jobs j WHERE j.state = 'running' GROUP BY j.tenant_key
    ), room AS (
        SELECT head.*, CASE WHEN head.tenant_key = '00000000-0000-0000-0000-000000000000' THEN of_no_tenant - coalesce(busy.here, 0)
                            ELSE per_tenant - coalesce(busy.jobs, 0) END AS slots
        FROM head LEFT JOIN busy USING (tenant_key) WHERE head.run_at <= moment
    ), due AS (
        SELECT room.queue, room.tenant_key, room.slots, count(*) OVER (PARTITION BY room.queue) AS tenants,
            row_number() OVER (PARTITION BY room.queue
                               ORDER BY turn.served_at NULLS FIRST, room.run_at, room.tenant_key) AS place
        FROM room LEFT JOIN job_turns turn USING (queue, tenant_key) WHERE room.slots > 0
    ), candidate AS (
        SELECT due.*, oldest.id,
            row_number() OVER (PARTITION BY due.queue, due.tenant_key ORDER BY oldest.run_at, oldest.created_at) AS round
        FROM due CROSS JOIN LATERAL (
            SELECT j.id, j.run_at, j.created_at FROM jobs j
            WHERE j.state = 'waiting' AND j.queue = due.queue AND j.tenant_key = due.tenant_key AND j.run_at <= moment
            ORDER BY j.run_at, j.created_at
            -- As many as it can get when all who wait share.
            LIMIT least(due.slots, (wanted + due.tenants - 1) / due.tenants)) oldest
        WHERE due.place <= wanted
    ), ranked AS (
        SELECT candidate.*, array_position(ARRAY['high_priority', 'default', 'low_priority'], candidate.queue) AS priority,
            row_number() OVER (PARTITION BY candidate.queue ORDER BY candidate.round, candidate.place) AS rank
        FROM candidate
    ), drawn AS (
        SELECT ranked.*, ranked.rank > shares[ranked.priority] AS over,
            row_number() OVER (PARTITION BY ranked.tenant_key
                               ORDER BY ranked.rank > shares[ranked.priority], ranked.priority, ranked.rank) AS of_tenant
        FROM ranked
    ), chosen AS (
        SELECT drawn.* FROM drawn WHERE drawn.of_tenant <= drawn.slots
        ORDER BY drawn.over, drawn.priority, drawn.rank LIMIT wanted
    ), free AS (
        -- One that is being cancelled is locked, and no longer waiting afterwards.
        SELECT j.id FROM jobs j WHERE j.id IN (SELECT chosen.id FROM chosen) AND j.state = 'waiting'
        FOR UPDATE SKIP LOCKED
    ), taken AS (
        UPDATE jobs j SET state = 'running', fence = j.fence + 1, attempts = j.attempts + 1, node = node_name,
            lease_until = moment + make_interval(secs => lease_seconds), run_at = greatest(j.run_at, j.created_at)
        FROM free WHERE j.id = free.id RETURNING j.id
    ), turned AS (
        -- A millionth of a second apart, in the order in which they were served.
        INSERT INTO job_turns AS turn (queue, tenant_key, served_at)
        SELECT chosen.queue, chosen.tenant_key, moment + make_interval(secs => max(chosen.rank) * 0.000001)
        FROM chosen JOIN taken USING (id) GROUP BY chosen.queue, chosen.tenant_key
        ON CONFLICT (queue, tenant_key) DO UPDATE SET served_at = excluded.served_at
    )
    SELECT array_agg(taken.id) INTO claimed FROM taken;

    IF claimed IS NOT NULL THEN
        PERFORM pg_notify('loomworks_job_changes', array_to_string(claimed, ' '));
        RETURN QUERY SELECT j.* FROM jobs j WHERE j.id = ANY (claimed);
    END IF;
END
$$;

-- What is done again and again, at times of day or in intervals.
CREATE TABLE schedules (
    name        text PRIMARY KEY CHECK (char_length(name) BETWEEN 1 AND 255),
    -- NULL: for the platform.
    tenant_id   uuid REFERENCES tenants ON DELETE CASCADE,
    timing      text NOT NULL,
    kind        text NOT NULL,
    queue       text NOT NULL,
    work        jsonb NOT NULL,
    enabled     boolean NOT NULL DEFAULT true,
    next_run_at timestamptz NOT NULL,
    last_run_at timestamptz,
    last_job    uuid
);

GRANT SELECT, INSERT, UPDATE, DELETE ON job_turns, schedules TO loomworks_platform;
GRANT DELETE ON jobs TO loomworks_platform;

REVOKE ALL ON FUNCTION claim_jobs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION claim_jobs TO loomworks_platform;

ALTER TABLE schedules ENABLE ROW LEVEL SECURITY;
ALTER TABLE schedules FORCE ROW LEVEL SECURITY;
CREATE POLICY platform ON schedules TO loomworks_platform USING (true);
CREATE POLICY own_tenant ON schedules TO loomworks_api USING (tenant_id = (SELECT current_tenant()));
