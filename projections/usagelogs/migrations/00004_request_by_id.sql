-- +goose Up
-- An entry of an index is found by comparing its columns in their order: with what tells requests apart first, writing one costs half.
DROP INDEX request_by_id;
CREATE INDEX request_by_id ON request (request_id, company_id, environment);
