-- +goose Up
-- What happened in a company and environment. A row is an event, but that a send which goes out to many locations at one moment is one row.
CREATE TABLE entry (
    company_id    text        NOT NULL,
    environment   text        NOT NULL,
    occurred_at   timestamptz NOT NULL,
    position      bigint      NOT NULL, -- of the event: it tells apart what is of the same moment
    event_id      uuid        NOT NULL,
    type          text        NOT NULL,
    actor         text        NOT NULL, -- an ID, or operator, company, endpoint or system
    resource_type text        NOT NULL,
    resource_id   text        NOT NULL,
    send_id       text,                 -- what else it has to do with
    audio_id      text,
    external_id   text,
    request_id    text,
    locations     integer,              -- how many a send went out to
    details       jsonb       NOT NULL,
    PRIMARY KEY (company_id, environment, occurred_at, position)
);
-- Deliveries are most of the rows by far, so they are in no more indexes than they are looked for by.
CREATE INDEX entry_type ON entry (company_id, environment, type, occurred_at, position);
CREATE INDEX entry_actor ON entry (company_id, environment, actor, occurred_at, position);
CREATE INDEX entry_send ON entry (company_id, environment, send_id, occurred_at, position) WHERE send_id IS NOT NULL;
CREATE INDEX entry_location ON entry (company_id, environment, external_id, occurred_at, position) WHERE external_id IS NOT NULL;
CREATE INDEX entry_audio ON entry (company_id, environment, audio_id, occurred_at, position) WHERE audio_id IS NOT NULL AND resource_type <> 'delivery';
CREATE INDEX entry_resource ON entry (company_id, environment, resource_type, resource_id, occurred_at, position) WHERE resource_type <> 'delivery';
CREATE INDEX entry_delivery ON entry (company_id, environment, resource_id, occurred_at, position) WHERE resource_type = 'delivery';
CREATE UNIQUE INDEX entry_sent ON entry (send_id, occurred_at) WHERE type = 'AudioSent';

-- Large sends whose last part has not come yet. They have happened when it does, and not before.
CREATE TABLE unsealed (
    send_id     text  PRIMARY KEY,
    company_id  text  NOT NULL,
    environment text  NOT NULL,
    type        text  NOT NULL,
    actor       text  NOT NULL,
    audio_id    text  NOT NULL,
    request_id  text,
    locations   integer,
    details     jsonb NOT NULL
);
