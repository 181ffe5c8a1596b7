-- What `asyncbg doctor` asks a database, on a connection that only reads.

-- name: version
SELECT version FROM schema_version WHERE component = 'engine'

-- name: newest
SELECT at FROM event ORDER BY seq DESC LIMIT 1

-- name: lost
-- Running jobs whose process is gone.
SELECT count(*) FROM job WHERE state = 'running' AND place NOT IN (SELECT value FROM json_each(:held))

-- name: crashed
-- Unfinished jobs that took a process down before: [jobs, most crashes].
SELECT count(*), coalesce(max(crashes), 0) FROM job WHERE finished_at IS NULL AND crashes > 0

-- name: poison
SELECT count(*) FROM job WHERE state = 'failed' AND error_type = 'PoisonError'

-- name: overdue
-- Jobs that could have run for that long.
SELECT count(*) FROM job WHERE state = 'queued' AND run_at < :before_ms
