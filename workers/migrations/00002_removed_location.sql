-- +goose Up

-- Locations that were removed not long ago. A send that was asked for before and recorded after the removal may still turn up at one.
CREATE TABLE workers.removed_location (
    stream      text        NOT NULL, -- the location's, and in it the removal
    revision    bigint      NOT NULL,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    user_id     bigint      NOT NULL,
    removed_at  timestamptz NOT NULL,
    looks       integer     NOT NULL, -- that were taken so far
    look_at     timestamptz NOT NULL,
    PRIMARY KEY (stream, revision)
);
CREATE INDEX removed_location_look ON workers.removed_location (look_at);
