-- +goose Up
CREATE SCHEMA IF NOT EXISTS workers;

-- How far each follower of the event store has come. Written in the transaction that holds what it did.
CREATE TABLE workers.checkpoint (
    follower         text   PRIMARY KEY,
    commit_position  bigint NOT NULL,
    prepare_position bigint NOT NULL
);

-- What each location's players are to be told, in the order of seq. Rows of one location are written under the lock of its bucket, so that a reader that
-- has seen a seq has seen all smaller ones of that location.
CREATE TABLE workers.inbox (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    user_id     bigint      NOT NULL,
    external_id text        NOT NULL,
    kind        text        NOT NULL,               -- deliver or cancel
    delivery_id text        NOT NULL,
    play_at     timestamptz,
    expires_at  timestamptz NOT NULL,
    overdue     boolean     NOT NULL DEFAULT false, -- expired while it played; looked at once more later
    payload     jsonb       NOT NULL,
    UNIQUE (delivery_id, kind)
);
CREATE INDEX inbox_location ON workers.inbox (company_id, environment, user_id, seq);
CREATE INDEX inbox_expires ON workers.inbox (expires_at);
CREATE INDEX inbox_sandbox ON workers.inbox (seq) WHERE environment = 'test' AND kind = 'deliver';

-- Deliveries that have ended. It keeps a message that arrives late, or again, from opening one anew.
CREATE TABLE workers.inbox_closed (
    delivery_id text        PRIMARY KEY,
    closed_at   timestamptz NOT NULL
);
CREATE INDEX inbox_closed_at ON workers.inbox_closed (closed_at);

-- Scheduled sends that still have locations to go to.
CREATE TABLE workers.schedule (
    send_id text        PRIMARY KEY,
    due_at  timestamptz NOT NULL,
    sealed  boolean     NOT NULL
);
CREATE INDEX schedule_due ON workers.schedule (due_at) WHERE sealed;

-- Large broadcasts that are not closed yet.
CREATE TABLE workers.open_broadcast (
    send_id text        PRIMARY KEY,
    since   timestamptz NOT NULL
);
