-- +goose Up
-- Up to which position what has ended may be unknown to the inboxes: the newest when this database, or the topic, was first seen.
ALTER TABLE workers.dispatch_topic ADD COLUMN doubt_through bigint NOT NULL DEFAULT 0;
