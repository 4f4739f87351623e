-- +goose Up
CREATE TABLE request (
    event_id    uuid        NOT NULL,
    company_id  text        NOT NULL,
    environment text        NOT NULL,
    at          timestamptz NOT NULL,
    request_id  text        NOT NULL,
    method      text        NOT NULL,
    path        text        NOT NULL,
    endpoint    text        NOT NULL,
    status      integer     NOT NULL,
    duration_ms bigint      NOT NULL,
    external_id text        NOT NULL,
    token_id    text        NOT NULL,
    ip          text        NOT NULL,
    user_agent  text        NOT NULL,
    error_code  text        NOT NULL
) PARTITION BY RANGE (at);
CREATE INDEX request_list ON request (company_id, environment, at, event_id);

-- The time of the newest request that was logged. What is older than 90 days before its week is dropped. The clock of the machine has no say, so a
-- replay keeps the same rows.
CREATE TABLE newest (at timestamptz NOT NULL);
INSERT INTO newest VALUES ('-infinity');

-- A partition is a week, from Thursday to Thursday (the Unix epoch was one), UTC.
CREATE FUNCTION week_of(at timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$ SELECT to_timestamp(floor(extract(epoch FROM at) / 604800) * 604800) $$;

-- Whether a request of that time is kept. The answer for a time changes only when the newest request is the first of a week, which is when old
-- weeks are looked for; so the rows do not depend on how the requests came in pages.
CREATE FUNCTION is_kept(at timestamptz, newest timestamptz) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT to_timestamp(floor(extract(epoch FROM at) / 604800) * 604800 + 604800)
        > to_timestamp(floor(extract(epoch FROM newest) / 604800) * 604800) - interval '2160 hours'
$$;

-- Makes the partitions for requests of these times, and drops those that are over.
-- +goose StatementBegin
CREATE FUNCTION turn_weeks(times timestamptz[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    latest timestamptz;
    week   timestamptz;
    old    regclass;
BEGIN
    UPDATE newest SET at = greatest(at, (SELECT max(t) FROM unnest(times) t)) RETURNING at INTO latest;
    FOR week IN SELECT DISTINCT week_of(t) FROM unnest(times) t WHERE is_kept(t, latest) LOOP
        IF to_regclass(to_char(week AT TIME ZONE 'UTC', '"request_"YYYYMMDD')) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF request FOR VALUES FROM (%L) TO (%L)',
                to_char(week AT TIME ZONE 'UTC', '"request_"YYYYMMDD'), week, week + interval '168 hours');
            -- A new week is the moment to look for old ones.
            FOR old IN
                SELECT c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = 'request'::regclass
                    AND NOT is_kept(to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC', latest)
            LOOP
                EXECUTE format('DROP TABLE %s', old);
            END LOOP;
        END IF;
    END LOOP;
END
$$;
-- +goose StatementEnd
