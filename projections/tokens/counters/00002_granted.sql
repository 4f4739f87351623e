-- +goose Up
-- Requests are counted several at a time: how many of the newest that came together were let through.
ALTER TABLE request DROP COLUMN allowed, ADD COLUMN granted bigint NOT NULL DEFAULT 0;
