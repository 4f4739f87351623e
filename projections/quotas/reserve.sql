-- Holds room for what is being made, if there is. What the read models count already is not counted once more.
-- $1 company, $2 environment, $3 month, $4 ID, $5 time; $6 sends, $7 uploads, $8 bytes more; $9, $10, $11 the most of each
WITH held AS (
    SELECT
        coalesce(sum(r.sends) FILTER (WHERE r.month = $3), 0)::bigint AS sends,
        coalesce(sum(r.uploads) FILTER (WHERE r.month = $3), 0)::bigint AS uploads,
        coalesce(sum(r.bytes), 0)::bigint AS bytes
    FROM quota.reservation r
    WHERE r.company_id = $1 AND r.environment = $2 AND r.id <> $4
        AND NOT EXISTS (SELECT FROM sends.send s WHERE s.send_id = r.id AND s.sealed)
        AND NOT EXISTS (SELECT FROM audio.item i WHERE i.audio_id = r.id)
), used AS (
    SELECT
        held.sends + coalesce((SELECT a.sends FROM sends.accepted a WHERE a.company_id = $1 AND a.environment = $2 AND a.month = $3), 0) AS sends,
        held.uploads + coalesce((SELECT u.uploads FROM audio.uploads u WHERE u.company_id = $1 AND u.environment = $2 AND u.month = $3), 0) AS uploads,
        held.bytes + coalesce((SELECT b.bytes FROM audio.storage b WHERE b.company_id = $1 AND b.environment = $2), 0) AS bytes
    FROM held
), kept AS (
    INSERT INTO quota.reservation (id, company_id, environment, month, sends, uploads, bytes, at)
    SELECT $4, $1, $2, $3, $6::bigint, $7::bigint, $8::bigint, $5 FROM used
    WHERE ($6::bigint = 0 OR used.sends + $6::bigint <= $9::bigint) AND ($7::bigint = 0 OR used.uploads + $7::bigint <= $10::bigint) AND ($8::bigint = 0 OR used.bytes + $8::bigint <= $11::bigint)
    ON CONFLICT (id) DO UPDATE SET at = excluded.at
    RETURNING id
)
SELECT used.sends, used.uploads, used.bytes, EXISTS (SELECT FROM kept) FROM used
