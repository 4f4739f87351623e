-- +goose Up

-- Locations that have an endpoint of their own instead of a player. Rows are made under the lock of the location's bucket, as those of the inbox, so that
-- either what comes into the inbox finds the row, or the row is made when that is there.
CREATE TABLE workers.endpoint (
    company_id   text        NOT NULL,
    environment  text        NOT NULL,
    user_id      bigint      NOT NULL,
    external_id  text        NOT NULL,
    url          text        NOT NULL,
    secret       text        NOT NULL,               -- sealed; '' is none
    active       boolean     NOT NULL,               -- false: removed, or with a player now; it is told only what was called off
    due_at       timestamptz,                        -- when to look what there is to tell; NULL is when something comes
    wakes        bigint      NOT NULL DEFAULT 0,     -- grows with all that comes, so that it is not overlooked
    holder       uuid,                               -- the one process that may ask it now
    leased_until timestamptz NOT NULL DEFAULT '-infinity', -- by the database's clock
    PRIMARY KEY (company_id, environment, user_id)
);
CREATE INDEX endpoint_due ON workers.endpoint (due_at) WHERE due_at IS NOT NULL;

-- What endpoints were asked, until the delivery has ended and, if it was called off, they know.
CREATE TABLE workers.endpoint_attempt (
    delivery_id text        PRIMARY KEY,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    user_id     bigint      NOT NULL,
    kind        text        NOT NULL,               -- deliver, or cancel once it was called off
    state       text        NOT NULL,               -- trying, or what it came to: accepted, played or failed
    recorded    boolean     NOT NULL DEFAULT false, -- that it came to that is in the event store
    asked       boolean     NOT NULL,               -- a request is under way, or was when its process died
    may_have    boolean     NOT NULL DEFAULT false, -- the endpoint took it, or may have taken it without an answer that arrived
    attempts    integer     NOT NULL,
    next_at     timestamptz NOT NULL,
    reason      text        NOT NULL DEFAULT '',    -- why the last attempt failed
    expires_at  timestamptz NOT NULL                -- the delivery's expiry
);
CREATE INDEX endpoint_attempt_location ON workers.endpoint_attempt (company_id, environment, user_id);
