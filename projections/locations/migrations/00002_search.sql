-- +goose Up
-- Names as they are searched: see readmodel.Fold. What is here already is folded as well as the database can.
ALTER TABLE location ADD COLUMN search text NOT NULL DEFAULT '';
UPDATE location SET search = lower(name);
