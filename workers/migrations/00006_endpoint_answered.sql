-- +goose Up

-- When the endpoint answered, by the server's clock: what it came to happened then, whenever it is recorded.
ALTER TABLE workers.endpoint_attempt ADD COLUMN answered_at timestamptz;
