-- +goose Up
CREATE SCHEMA IF NOT EXISTS projections;

-- One row per projection: everything up to the position is in its tables. Written in the transaction that writes the rows.
CREATE TABLE projections.checkpoint (
    projection       text        PRIMARY KEY,
    commit_position  bigint      NOT NULL DEFAULT 0,
    prepare_position bigint      NOT NULL DEFAULT 0,
    caught_up        boolean     NOT NULL DEFAULT false,
    error            text,                    -- what stopped it; null while it runs
    failing_since    timestamptz
);

-- Moves a checkpoint from one position to a later one and tells the listeners. It fails, and with it the transaction, where the checkpoint is not
-- at the position that the caller started from: then another instance was faster, and what the caller wrote must not be kept.
-- +goose StatementBegin
CREATE FUNCTION projections.advance(name text, from_commit bigint, from_prepare bigint, to_commit bigint, to_prepare bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE projections.checkpoint
    SET commit_position = to_commit, prepare_position = to_prepare, error = NULL, failing_since = NULL
    WHERE projection = name AND commit_position = from_commit AND prepare_position = from_prepare;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of % is not at %/%', name, from_commit, from_prepare USING ERRCODE = 'MQ001';
    END IF;
    PERFORM pg_notify('projection', format('%s %s %s', name, to_commit, to_prepare));
END
$$;
-- +goose StatementEnd
