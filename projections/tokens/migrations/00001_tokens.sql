-- +goose Up
CREATE TABLE company (
    company_id text        PRIMARY KEY,
    name       text        NOT NULL,
    plan       text        NOT NULL,
    prefix     text        NOT NULL,
    token_hash text        NOT NULL,
    suspended  boolean     NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    position   bigint      NOT NULL  -- of the event that made it: the order of lists
);
CREATE INDEX company_token ON company (token_hash);

CREATE TABLE token (
    token_id    text        PRIMARY KEY,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    external_id text        NOT NULL,
    user_id     bigint      NOT NULL,
    name        text        NOT NULL,
    permissions text[]      NOT NULL,
    hash        text        NOT NULL,
    expires_at  timestamptz,
    revoked_at  timestamptz,
    created_at  timestamptz NOT NULL,
    position    bigint      NOT NULL
);
CREATE INDEX token_hash ON token (hash);
CREATE INDEX token_list ON token (company_id, environment, position);
