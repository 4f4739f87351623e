-- +goose Up
-- How many deliveries of each location have ended how, and when audio was last played there. The open ones are few, and are counted where they are.
CREATE TABLE location (
    user_id        bigint NOT NULL,
    company_id     text   NOT NULL,
    environment    text   NOT NULL,
    played         bigint NOT NULL DEFAULT 0,
    failed         bigint NOT NULL DEFAULT 0,
    expired        bigint NOT NULL DEFAULT 0,
    cancelled      bigint NOT NULL DEFAULT 0,
    last_played_at timestamptz,
    PRIMARY KEY (user_id, company_id, environment)
) WITH (fillfactor = 70);
INSERT INTO location
SELECT d.user_id, s.company_id, s.environment,
    count(*) FILTER (WHERE d.status = 'played'), count(*) FILTER (WHERE d.status = 'failed'),
    count(*) FILTER (WHERE d.status = 'expired'), count(*) FILTER (WHERE d.status = 'cancelled'),
    max(d.ended_at) FILTER (WHERE d.status = 'played')
FROM delivery d JOIN send s ON s.send_id = d.send_id
WHERE d.status IN ('played', 'failed', 'expired', 'cancelled')
GROUP BY d.user_id, s.company_id, s.environment;
