-- +goose Up
-- Weeks that are over are dropped by their age, beside the projection, and not when newer requests come.
DROP FUNCTION turn_weeks(timestamptz[]);
DROP FUNCTION is_kept(timestamptz, timestamptz);
DROP TABLE newest;

-- Requests from before this time are dropped, or are about to be, and are not written any more: neither late ones, nor by a rebuild. Who drops moves it
-- first. The projection locks the row in each transaction, so none of them is about to write such a request then.
CREATE TABLE kept (since timestamptz NOT NULL);
INSERT INTO kept VALUES ('-infinity');

-- A request is here once though its event may be in the store twice: whether an append that expects no revision is a repeat, EventStoreDB tells as well as
-- it can, and not for certain.
DELETE FROM request r
USING (SELECT tableoid, ctid, row_number() OVER (PARTITION BY company_id, environment, at, event_id) AS nth FROM request) d
WHERE r.tableoid = d.tableoid AND r.ctid = d.ctid AND d.nth > 1;
DROP INDEX request_list;
CREATE UNIQUE INDEX request_list ON request (company_id, environment, at, event_id);

-- Makes the partitions for those of these requests that are kept.
-- +goose StatementBegin
CREATE FUNCTION make_weeks(times timestamptz[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    kept_since timestamptz;
    week       timestamptz;
    week_table text;
BEGIN
    SELECT since INTO kept_since FROM kept FOR SHARE;
    FOR week IN SELECT DISTINCT week_of(t) FROM unnest(times) t WHERE t >= kept_since LOOP
        week_table := to_char(week AT TIME ZONE 'UTC', '"request_"YYYYMMDD');
        IF to_regclass(week_table) IS NULL THEN
            -- CREATE TABLE ... PARTITION OF would wait for all who read requests, and have all others wait behind it; ATTACH PARTITION does not.
            EXECUTE format('CREATE TABLE %I (LIKE request INCLUDING ALL)', week_table);
            EXECUTE format('ALTER TABLE request ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', week_table, week, week + interval '168 hours');
        END IF;
    END LOOP;
END
$$;
-- +goose StatementEnd
