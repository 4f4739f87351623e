-- +goose Up
ALTER TABLE projections.checkpoint
    ADD COLUMN generation       bigint NOT NULL DEFAULT 0, -- how many rebuilds have taken the place of the tables
    ADD COLUMN rebuilt_at       timestamptz,               -- when the last one did
    ADD COLUMN events           bigint NOT NULL DEFAULT 0, -- applied since events are counted
    ADD COLUMN window_at        timestamptz,               -- the beginning of the window that the rate is measured in
    ADD COLUMN window_events    bigint NOT NULL DEFAULT 0,
    ADD COLUMN rate             double precision NOT NULL DEFAULT 0, -- events a second in the window before
    -- the event that stopped it; null while it runs, and where it was no event
    ADD COLUMN failing_event    uuid,
    ADD COLUMN failing_type     text,
    ADD COLUMN failing_stream   text,
    ADD COLUMN failing_revision bigint;

-- The rebuilds that are under way or paused. The version that is built has a row of its own in projections.checkpoint.
CREATE TABLE projections.rebuild (
    projection text        PRIMARY KEY,
    building   boolean     NOT NULL, -- false while it is paused
    fresh      boolean     NOT NULL, -- what was built before is to be thrown away
    begun_at   timestamptz NOT NULL
);

-- The events that an operator had a projection pass without applying them.
CREATE TABLE projections.skipped (
    projection text        NOT NULL,
    event_id   uuid        NOT NULL,
    type       text        NOT NULL,
    stream     text        NOT NULL,
    revision   bigint      NOT NULL,
    error      text        NOT NULL, -- why it could not be applied
    skipped_by text        NOT NULL,
    reason     text        NOT NULL,
    skipped_at timestamptz NOT NULL,
    applied_at timestamptz,          -- when a rebuild, which could apply it, took the place of the tables without it
    PRIMARY KEY (projection, event_id)
);

-- As before, and it fails too where the tables are not those that the caller's rows went into: a rebuild may have taken their place at the very position that
-- the caller started from. It counts the events.
DROP FUNCTION projections.advance(text, bigint, bigint, bigint, bigint);
-- +goose StatementBegin
CREATE FUNCTION projections.advance(name text, from_commit bigint, from_prepare bigint, to_commit bigint, to_prepare bigint,
    of_generation bigint DEFAULT 0, applied bigint DEFAULT 0) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    instant timestamptz := clock_timestamp();
BEGIN
    UPDATE projections.checkpoint
    SET commit_position = to_commit, prepare_position = to_prepare, error = NULL, failing_since = NULL,
        failing_event = NULL, failing_type = NULL, failing_stream = NULL, failing_revision = NULL,
        events = events + applied,
        rate = CASE WHEN instant >= window_at + interval '5 s' THEN (window_events + applied) / extract(epoch FROM instant - window_at) ELSE rate END,
        window_events = CASE WHEN instant >= window_at + interval '5 s' THEN 0 ELSE window_events + applied END,
        window_at = CASE WHEN instant >= window_at + interval '5 s' THEN instant ELSE coalesce(window_at, instant) END
    WHERE projection = name AND commit_position = from_commit AND prepare_position = from_prepare AND generation = of_generation;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of % is not at %/% of generation %', name, from_commit, from_prepare, of_generation USING ERRCODE = 'MQ001';
    END IF;
    PERFORM pg_notify('projection', format('%s %s %s', name, to_commit, to_prepare));
END
$$;
-- +goose StatementEnd
