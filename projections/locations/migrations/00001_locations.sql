-- +goose Up
CREATE TABLE location (
    company_id   text        NOT NULL,
    environment  text        NOT NULL,
    user_id      bigint      NOT NULL,
    external_id  text        NOT NULL,
    name         text        NOT NULL,
    timezone     text        NOT NULL,
    tags         text[]      NOT NULL,
    channel_type text        NOT NULL,
    channel_url  text        NOT NULL,
    created_at   timestamptz NOT NULL,
    position     bigint      NOT NULL, -- of the event that made it: the order of lists
    PRIMARY KEY (company_id, environment, user_id)
);
-- Everything that a send asks of a location, so that a broadcast reads the index alone.
CREATE INDEX location_external ON location (company_id, environment, external_id) INCLUDE (user_id, timezone);
CREATE INDEX location_list ON location (company_id, environment, position);

-- The devices that may sign in; those that may not any more are gone.
CREATE TABLE device (
    device_id   text        PRIMARY KEY,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    user_id     bigint      NOT NULL,
    external_id text        NOT NULL,
    name        text        NOT NULL,
    hash        text        NOT NULL,
    created_at  timestamptz NOT NULL,
    position    bigint      NOT NULL
);
CREATE INDEX device_hash ON device (hash);
CREATE INDEX device_location ON device (company_id, environment, user_id, position);
