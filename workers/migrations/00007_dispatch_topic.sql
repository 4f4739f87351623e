-- +goose Up
-- Which topic the checkpoint of dispatch speaks of, by the ID that Kafka gave it when it was made: with another one it is worth nothing.
CREATE TABLE workers.dispatch_topic (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    topic_id text    NOT NULL
);
