-- +goose Up

-- Moves a follower's checkpoint. It fails, and with it the transaction, where the checkpoint is not at the position that the caller started from: then
-- another instance is at work, or the server lost its newest transactions in a crash, and what the caller wrote must not be kept.
-- +goose StatementBegin
CREATE FUNCTION workers.advance(name text, from_commit bigint, from_prepare bigint, to_commit bigint, to_prepare bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE workers.checkpoint SET commit_position = to_commit, prepare_position = to_prepare
    WHERE follower = name AND commit_position = from_commit AND prepare_position = from_prepare;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the checkpoint of % is not at %/%', name, from_commit, from_prepare USING ERRCODE = 'MQ001';
    END IF;
END
$$;
-- +goose StatementEnd

-- Up to when blob storage was looked through for bytes whose upload was never recorded.
CREATE TABLE workers.swept (
    through timestamptz NOT NULL
);
INSERT INTO workers.swept VALUES ('epoch');
