-- +goose Up
CREATE TABLE send (
    send_id      text        PRIMARY KEY,
    company_id   text        NOT NULL,
    environment  text        NOT NULL,
    audio_id     text        NOT NULL,
    priority     text        NOT NULL,
    repeat       integer     NOT NULL,
    volume       integer     NOT NULL, -- percent
    expires_in   bigint      NOT NULL, -- seconds
    single       boolean     NOT NULL,
    schedule_at  timestamptz,          -- null for a send that was not scheduled
    local_time   text        NOT NULL,
    total        integer     NOT NULL, -- destinations
    created_at   timestamptz NOT NULL,
    cancelled_at timestamptz,
    sealed       boolean     NOT NULL, -- accepted: every part of it is there; others see it only then
    position     bigint      NOT NULL, -- of the event that made it: the order of lists
    -- how many of its deliveries are where
    scheduled    integer     NOT NULL DEFAULT 0,
    queued       integer     NOT NULL DEFAULT 0,
    delivered    integer     NOT NULL DEFAULT 0,
    playing      integer     NOT NULL DEFAULT 0,
    played       integer     NOT NULL DEFAULT 0,
    failed       integer     NOT NULL DEFAULT 0,
    expired      integer     NOT NULL DEFAULT 0,
    cancelled    integer     NOT NULL DEFAULT 0,
    status       text        NOT NULL GENERATED ALWAYS AS (CASE
        WHEN cancelled_at IS NOT NULL                                 THEN 'cancelled'
        WHEN played + failed + expired + cancelled >= total           THEN CASE
            WHEN played > 0                                           THEN 'sent'
            WHEN failed + expired > 0                                 THEN 'failed'
            ELSE                                                           'cancelled' END
        WHEN queued + delivered + playing + played + failed + expired > 0
            OR schedule_at IS NULL                                    THEN 'queued'
        ELSE                                                               'scheduled' END) STORED
) WITH (fillfactor = 70);
CREATE INDEX send_list ON send (company_id, environment, position);
CREATE INDEX send_pending ON send (audio_id) WHERE status IN ('scheduled', 'queued');

CREATE TABLE delivery (
    send_id      text        NOT NULL,
    user_id      bigint      NOT NULL,
    external_id  text        NOT NULL,
    status       text        NOT NULL,
    rank         smallint    NOT NULL, -- of the status: it never falls
    play_at      timestamptz,
    expires_at   timestamptz,
    queued_at    timestamptz,
    delivered_at timestamptz,
    playing_at   timestamptz,
    ended_at     timestamptz,
    reason       text,
    PRIMARY KEY (send_id, user_id)
);
CREATE INDEX delivery_open ON delivery (user_id) WHERE status IN ('scheduled', 'queued', 'delivered', 'playing');

-- What counts towards the quota of a plan: the sends that were accepted in a month.
CREATE TABLE accepted (
    company_id  text   NOT NULL,
    environment text   NOT NULL,
    month       date   NOT NULL, -- its first day, UTC
    sends       bigint NOT NULL,
    PRIMARY KEY (company_id, environment, month)
);
