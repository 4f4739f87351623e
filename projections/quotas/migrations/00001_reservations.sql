-- +goose Up
-- Room in the quotas that is held for what is being made, until the read models count it. Not a read model: no event stands behind it yet.
CREATE TABLE reservation (
    id          text        PRIMARY KEY, -- of what is being made
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    month       date        NOT NULL,
    sends       bigint      NOT NULL,
    uploads     bigint      NOT NULL,
    bytes       bigint      NOT NULL,
    at          timestamptz NOT NULL
);
CREATE INDEX reservation_company ON reservation (company_id, environment);
