-- +goose Up
-- Which players are connected now. Not a read model: no event stands behind a heartbeat.
CREATE TABLE stream (
    stream_id   text        PRIMARY KEY,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    user_id     bigint      NOT NULL,
    beat_at     timestamptz NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX stream_location ON stream (company_id, environment, user_id);

CREATE TABLE location (
    company_id   text        NOT NULL,
    environment  text        NOT NULL,
    user_id      bigint      NOT NULL,
    last_seen_at timestamptz NOT NULL,
    PRIMARY KEY (company_id, environment, user_id)
) WITH (fillfactor = 50);
