-- +goose Up
-- A request is asked for by its ID when something went wrong with it; without this index the search would read all of the company's 90 days.
CREATE INDEX request_by_id ON request (company_id, environment, request_id);
