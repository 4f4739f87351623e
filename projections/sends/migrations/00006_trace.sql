-- +goose Up
-- The place of what made the send in the trace of its request (W3C Trace Context), for the reports of its players. Empty where there was no trace, and for
-- sends that were made before this column.
ALTER TABLE send ADD COLUMN traceparent text NOT NULL DEFAULT '';
