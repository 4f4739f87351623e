-- +goose Up
-- Requests are counted several at a time: how many of the newest that came together were let through.
ALTER TABLE request ADD COLUMN granted bigint NOT NULL DEFAULT 0;
-- Processes of the version before write it still while they are replaced; the next version drops it.
ALTER TABLE request ALTER COLUMN allowed DROP NOT NULL;
