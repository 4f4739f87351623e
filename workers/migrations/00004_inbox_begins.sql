-- +goose Up

-- The numbers of an inbox begin at the microsecond, since 1970, in which it was made. Players remember the last that they were told, as Last-Event-ID. Where
-- the inbox was lost and is made again, all of its numbers are higher than those of the old one, and so it tells players everything that is open.
SELECT setval(pg_get_serial_sequence('workers.inbox', 'seq')::regclass,
    greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, (SELECT coalesce(max(seq), 0) FROM workers.inbox)));
