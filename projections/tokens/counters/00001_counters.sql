-- +goose Up
-- What tokens used of their limits, in fixed windows numbered from the Unix epoch. Not a read model: no event stands behind a request.
-- The rows change with every request; room in the page lets PostgreSQL do that without touching the index (heap-only tuples).
CREATE TABLE request (
    token_id  text    PRIMARY KEY,
    minute    bigint  NOT NULL,
    hour      bigint  NOT NULL,
    day       bigint  NOT NULL,
    in_minute bigint  NOT NULL,
    in_hour   bigint  NOT NULL,
    in_day    bigint  NOT NULL,
    allowed   boolean NOT NULL  -- whether the newest request was
) WITH (fillfactor = 50);

CREATE TABLE upload (
    token_id text    PRIMARY KEY,
    hour     bigint  NOT NULL,
    in_hour  bigint  NOT NULL,
    allowed  boolean NOT NULL
) WITH (fillfactor = 50);

-- What is guessed, by the address that it came from (company tokens) or the company that asked (tokens to revoke).
CREATE TABLE guess (
    address   text   PRIMARY KEY, -- or company/{id}/{environment}
    minute    bigint NOT NULL,
    in_minute bigint NOT NULL
);
CREATE INDEX guess_minute ON guess (minute);
