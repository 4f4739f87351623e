-- Finds a token by any of its hashes and counts the request, in one round trip.
-- The row of the token in counters.request is locked from the count to the commit, so that callers in any number of processes count one after
-- the other. A window never goes back: a process whose clock is behind counts in the window that others have begun.
-- $1 hashes; $2 time; $3 minute, $4 hour, $5 day, numbered from the epoch; $6 plans, $7 per minute, $8 per hour, $9 per day
WITH plan AS (
    SELECT * FROM unnest($6::text[], $7::bigint[], $8::bigint[], $9::bigint[]) AS p (name, per_minute, per_hour, per_day)
), found AS (
    SELECT t.*, c.plan, c.name AS company_name, c.created_at AS company_created_at,
        t.revoked_at IS NOT NULL OR c.suspended AS dead,
        coalesce(t.expires_at <= $2, false) AS expired,
        coalesce(p.per_minute, s.per_minute, 0) AS per_minute,
        coalesce(p.per_hour, s.per_hour, 0) AS per_hour,
        coalesce(p.per_day, s.per_day, 0) AS per_day
    FROM tokens.token t
    JOIN tokens.company c ON c.company_id = t.company_id
    LEFT JOIN plan p ON p.name = c.plan
    LEFT JOIN plan s ON s.name = 'standard' -- for a plan that the configuration does not have any more
    WHERE t.hash = ANY($1)
    LIMIT 1
), unsynced AS MATERIALIZED (
    -- The commit does not wait for the disk: a crash of the database server may forget the requests of its last moments.
    SELECT set_config('synchronous_commit', 'off', true)
), counted AS (
    INSERT INTO counters.request AS r (token_id, minute, hour, day, in_minute, in_hour, in_day, allowed)
    SELECT token_id, $3, $4, $5, 1, 1, 1, true FROM found WHERE NOT dead AND NOT expired
    ON CONFLICT (token_id) DO UPDATE SET (minute, hour, day, in_minute, in_hour, in_day, allowed) = (
        SELECT minute, hour, day, in_minute + free, in_hour + free, in_day + free, free = 1
        FROM (
            SELECT u.*, (u.in_minute < f.per_minute AND u.in_hour < f.per_hour AND u.in_day < f.per_day)::int AS free
            FROM found f, (
                SELECT
                    greatest(r.minute, excluded.minute) AS minute,
                    greatest(r.hour, excluded.hour) AS hour,
                    greatest(r.day, excluded.day) AS day,
                    CASE WHEN excluded.minute > r.minute THEN 0 ELSE r.in_minute END AS in_minute,
                    CASE WHEN excluded.hour > r.hour THEN 0 ELSE r.in_hour END AS in_hour,
                    CASE WHEN excluded.day > r.day THEN 0 ELSE r.in_day END AS in_day
            ) u
        ) w
    )
    RETURNING *
)
SELECT f.company_id, f.company_name, f.company_created_at, f.plan, f.environment, f.token_id, f.name, f.external_id, f.user_id, f.permissions,
    f.expires_at, f.created_at, f.dead, f.expired, f.per_minute, f.per_hour, f.per_day,
    coalesce(c.minute, $3), coalesce(c.hour, $4), coalesce(c.day, $5),
    coalesce(c.in_minute, 0), coalesce(c.in_hour, 0), coalesce(c.in_day, 0), coalesce(c.allowed, false)
FROM found f
CROSS JOIN unsynced
LEFT JOIN counted c ON true
