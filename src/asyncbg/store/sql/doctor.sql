-- What `asyncbg doctor` asks a database, on a connection that only reads.

-- name: versions
SELECT component, version FROM schema_version ORDER BY component

-- name: newest
SELECT at FROM event ORDER BY seq DESC LIMIT 1

-- name: running
-- How many jobs run, by the place of their process.
SELECT place, count(*) FROM job WHERE state = 'running' GROUP BY place

-- name: crashed
-- Unfinished jobs that took a process down before: [jobs, most crashes].
SELECT count(*), coalesce(max(crashes), 0) FROM job WHERE finished_at IS NULL AND crashes > 0

-- name: poison
SELECT count(*) FROM job WHERE state IN ('failed', 'cancelled') AND state = 'failed' AND error_type = 'PoisonError'

-- name: overdue
-- Jobs that could have run for that long.
SELECT count(*) FROM job WHERE state = 'queued' AND run_at < :before_ms

-- name: unknown
-- Tasks whose jobs wait, though a process that looked at one of them that long ago had no such task: [task, how many].
SELECT task, sum(many) FROM job_count
WHERE durable = 1 AND many > 0 AND task IN (
    SELECT task FROM job_count AS asked
    WHERE state = 'queued' AND durable = 1 AND many > 0 AND EXISTS (
        SELECT 1 FROM job JOIN event ON event.job = job.n
        WHERE job.task = asked.task AND job.state = 'queued' AND job.durable = 1
          AND event.type = 'job.queued' AND event.data = :reason AND event.at < :before_ms
    )
)
GROUP BY task ORDER BY 2 DESC, task

-- name: sealed
-- The ids of the keys that values are encrypted with, and how many values each.
SELECT key, count(*) FROM (
    SELECT substr(args, 7, 8) AS key FROM job WHERE substr(args, 1, 6) = 'enc:1:'
    UNION ALL SELECT substr(result, 7, 8) FROM job WHERE substr(result, 1, 6) = 'enc:1:'
) GROUP BY key
