-- Finds tokens by any of their hashes and counts the requests made with them, in one round trip.
-- The row of a token in counters.request is locked from the count to the commit, so that callers in any number of processes count one after
-- the other, and always in the order of the tokens, so that none waits for one that waits for it. A window never goes back: a process whose clock is behind
-- counts in the window that others have begun.
-- $1 hashes, $2 the number of the token that each is of, $3 how many requests came with it; $4 time; $5 minute, $6 hour, $7 day, numbered from the epoch;
-- $8 plans, $9 per minute, $10 per hour, $11 per day
WITH plan AS (
    SELECT * FROM unnest($8::text[], $9::bigint[], $10::bigint[], $11::bigint[]) AS p (name, per_minute, per_hour, per_day)
), found AS MATERIALIZED (
    SELECT a.number, a.requests, t.*, c.plan, c.name AS company_name, c.created_at AS company_created_at,
        t.revoked_at IS NOT NULL OR c.suspended AS dead,
        coalesce(t.expires_at <= $4, false) AS expired,
        coalesce(p.per_minute, s.per_minute, 0) AS per_minute,
        coalesce(p.per_hour, s.per_hour, 0) AS per_hour,
        coalesce(p.per_day, s.per_day, 0) AS per_day
    FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS a (hash, number, requests)
    JOIN tokens.token t ON t.hash = a.hash
    JOIN tokens.company c ON c.company_id = t.company_id
    LEFT JOIN plan p ON p.name = c.plan
    LEFT JOIN plan s ON s.name = 'standard' -- for a plan that the configuration does not have any more
), unsynced AS MATERIALIZED (
    -- The commit does not wait for the disk: a crash of the database server may forget the requests of its last moments.
    SELECT set_config('synchronous_commit', 'off', true)
), counted AS (
    INSERT INTO counters.request AS r (token_id, minute, hour, day, in_minute, in_hour, in_day, granted)
    SELECT token_id, $5, $6, $7, free, free, free, free
    FROM (SELECT *, least(requests, per_minute, per_hour, per_day) AS free FROM found WHERE NOT dead AND NOT expired ORDER BY token_id) f
    ON CONFLICT (token_id) DO UPDATE SET (minute, hour, day, in_minute, in_hour, in_day, granted) = (
        SELECT minute, hour, day, in_minute + free, in_hour + free, in_day + free, free
        FROM (
            SELECT u.*, greatest(0, least(f.requests, f.per_minute - u.in_minute, f.per_hour - u.in_hour, f.per_day - u.in_day)) AS free
            FROM (
                SELECT
                    greatest(r.minute, excluded.minute) AS minute,
                    greatest(r.hour, excluded.hour) AS hour,
                    greatest(r.day, excluded.day) AS day,
                    CASE WHEN excluded.minute > r.minute THEN 0 ELSE r.in_minute END AS in_minute,
                    CASE WHEN excluded.hour > r.hour THEN 0 ELSE r.in_hour END AS in_hour,
                    CASE WHEN excluded.day > r.day THEN 0 ELSE r.in_day END AS in_day
            ) u
            JOIN found f ON f.token_id = r.token_id
        ) w
    )
    RETURNING *
)
SELECT f.number, f.company_id, f.company_name, f.company_created_at, f.plan, f.environment, f.token_id, f.name, f.external_id, f.user_id, f.permissions,
    f.expires_at, f.created_at, f.dead, f.expired, f.per_minute, f.per_hour, f.per_day,
    coalesce(c.minute, $5), coalesce(c.hour, $6), coalesce(c.day, $7),
    coalesce(c.in_minute, 0), coalesce(c.in_hour, 0), coalesce(c.in_day, 0), coalesce(c.granted, 0)
FROM found f
CROSS JOIN unsynced
LEFT JOIN counted c ON c.token_id = f.token_id
