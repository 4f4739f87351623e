-- +goose Up
CREATE TABLE item (
    audio_id         text        PRIMARY KEY,
    company_id       text        NOT NULL,
    environment      text        NOT NULL,
    name             text        NOT NULL,
    description      text        NOT NULL,
    category         text        NOT NULL,
    format           text        NOT NULL,
    content_type     text        NOT NULL,
    duration_ms      bigint      NOT NULL,
    size             bigint      NOT NULL, -- bytes
    sha256           text        NOT NULL,
    blob_key         text        NOT NULL,
    created_at       timestamptz NOT NULL,
    position         bigint      NOT NULL, -- of the event that made it: the order of lists
    times_played     bigint      NOT NULL DEFAULT 0,
    last_played_at   timestamptz,
    total_recipients bigint      NOT NULL DEFAULT 0
);
CREATE INDEX item_list ON item (company_id, environment, position);

-- The recipients of large sends whose last part has not come yet. They count when it does.
CREATE TABLE unsealed (
    send_id    text   NOT NULL,
    audio_id   text   NOT NULL,
    recipients bigint NOT NULL,
    PRIMARY KEY (send_id, audio_id)
);

-- What counts towards the quotas of a plan.
CREATE TABLE uploads (
    company_id  text   NOT NULL,
    environment text   NOT NULL,
    month       date   NOT NULL, -- its first day, UTC
    uploads     bigint NOT NULL,
    PRIMARY KEY (company_id, environment, month)
);
CREATE TABLE storage (
    company_id  text   NOT NULL,
    environment text   NOT NULL,
    bytes       bigint NOT NULL,
    PRIMARY KEY (company_id, environment)
);
