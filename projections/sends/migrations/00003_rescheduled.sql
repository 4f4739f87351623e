-- +goose Up
-- The time zone of a location when a send was scheduled for it, by which a change of the send's clock time goes. Null where it was not recorded.
ALTER TABLE delivery ADD COLUMN timezone text;
