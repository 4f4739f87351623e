-- +goose Up
-- Lists are in the order of creation or, where they are asked for by schedule, of the schedule. The position tells apart what is of the same moment.
CREATE INDEX send_created ON send (company_id, environment, created_at, position);
CREATE INDEX send_status ON send (company_id, environment, status, created_at, position);
CREATE INDEX send_schedule ON send (company_id, environment, schedule_at, position) WHERE schedule_at IS NOT NULL;
CREATE INDEX send_audio_created ON send (audio_id, created_at, position);
DROP INDEX send_list;
DROP INDEX send_audio;
