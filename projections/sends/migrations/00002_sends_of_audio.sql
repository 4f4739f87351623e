-- +goose Up
-- The list of what was sent of one piece of audio, which is few of a company's sends.
CREATE INDEX send_audio ON send (audio_id, position);
