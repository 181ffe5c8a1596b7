-- The statements of the SQLite backend. Each step of a statement releases and takes the GIL once, so a batch is read
-- as one row of JSON and written by one statement of many rows ({rows} stands for its placeholders).

-- name: read_log
SELECT epoch, seq, n, purged, reports FROM log

-- name: start_log
INSERT INTO log (one, epoch, seq, n, purged, wall_offset) VALUES (1, :epoch, 0, 0, 0, :wall_offset)
ON CONFLICT (one) DO UPDATE SET wall_offset = excluded.wall_offset

-- name: read_wall_offset
SELECT wall_offset FROM log

-- name: write_wall_offset
UPDATE log SET wall_offset = :wall_offset

-- name: shift_delays
-- Delays and retries are spans of time, so they move with the wall clock; a time of day (at=) stays.
UPDATE job SET run_at = max(1, run_at + :jump_ms)
WHERE absolute = 0 AND n IN (
    SELECT n FROM job WHERE state = 'scheduled'
    UNION ALL SELECT n FROM job WHERE state = 'waiting' AND finished_at IS NULL
)

-- name: write_log
UPDATE log SET seq = ?, n = ?, reports = ?

-- name: read_tail
-- In one statement, so of one state of the database: where the log is, and the jobs whose progress other places have
-- reported since. The index holds them in the order of their reports, so only what is new is read.
SELECT json_array(seq, reports, json((
    SELECT json_group_array(json_array(id, task, batch, owner, attempt, progress, state = 'running'))
    FROM job WHERE reported > :after AND place IS NOT :place
))) FROM log

-- name: insert_jobs
INSERT INTO job (n, id, task, queue, owner, batch, tags, state, priority, durable, at_most_once, stop_on_failure,
                 retries, args, personal, created_at, run_at, place, idempotency_key, fingerprint, unique_key,
                 absolute, max_attempts)
VALUES {rows}

-- name: insert_queued_events
-- The first event of each new job is named after its state; its number follows the job's.
INSERT INTO event (seq, job, type, at, attempt)
SELECT n + :shift, n, 'job.' || state, created_at, 0 FROM job WHERE n > :after_n

-- name: insert_events
INSERT INTO event (seq, job, type, at, attempt, data) VALUES {rows}

-- name: find_keys
-- Earlier jobs under the idempotency keys or unique keys of an enqueue: [kind, position in the request, id, fingerprint].
SELECT json_group_array(json_array(kind, at, id, fingerprint)) FROM (
    SELECT 'idempotency' AS kind, v.key AS at, job.id, job.fingerprint
    FROM json_each(:keys) v
    JOIN job ON job.owner = v.value->>0 AND job.idempotency_key = v.value->>1
    WHERE job.idempotency_key IS NOT NULL
    UNION ALL
    SELECT 'unique', v.key, job.id, NULL
    FROM json_each(:keys) v
    JOIN job ON job.owner = v.value->>0 AND job.task = v.value->>2 AND job.unique_key = v.value->>3
    WHERE job.unique_key IS NOT NULL AND job.finished_at IS NULL
)

-- name: remember_schedules
-- A schedule that is new begins now. One that is ahead of the latest slot there can be was fired by a clock that went
-- wrong: it begins now too.
INSERT INTO schedule (name, slot) SELECT value, :since_ms FROM json_each(:names) WHERE true
ON CONFLICT (name) DO UPDATE SET slot = excluded.slot WHERE slot > :latest_ms

-- name: last_slots
SELECT json_group_object(name, slot) FROM schedule WHERE name IN (SELECT value FROM json_each(:names))

-- name: advance_schedule
-- Changes a row for the first process that comes to this slot, and for no other.
INSERT INTO schedule (name, slot) VALUES (:name, :slot_ms)
ON CONFLICT (name) DO UPDATE SET slot = excluded.slot WHERE slot < excluded.slot

-- name: find_due
SELECT json_group_array(n) FROM (
    SELECT n FROM job WHERE state = 'scheduled' AND run_at <= :now_ms ORDER BY run_at LIMIT 1000
)

-- name: queue_jobs
-- Scheduled jobs that are due, and waiting jobs whose turn it is.
UPDATE job SET state = CASE WHEN run_at > :now_ms THEN 'scheduled' ELSE 'queued' END
WHERE n IN (SELECT value FROM json_each(:ns)) AND state IN ('scheduled', 'waiting')

-- name: event_refs
-- What an event says of its job: [n, id, task, batch, owner, attempt, state].
SELECT json_group_array(json_array(n, id, task, batch, owner, attempt, state))
FROM job WHERE n IN (SELECT value FROM json_each(:ns)) ORDER BY n

-- name: read_ready
-- What a lease tells of each of the jobs given, in their order; and when the next scheduled job is due.
SELECT json_group_array(json_array(job.n, id, task, queue, owner, batch, tags, job.priority, durable, at_most_once,
                                   stop_on_failure, retries, attempt + 1, max_attempts, args, created_at)),
       (SELECT min(run_at) FROM job WHERE state = 'scheduled')
FROM ({ready}) AS ready CROSS JOIN job ON job.n = ready.n

-- name: find_ready
-- Two indexes, merged: of the jobs that live in one process each process reads its own only.
SELECT n, priority FROM job WHERE state = 'queued' AND durable = 1
UNION ALL SELECT n, priority FROM job WHERE state = 'queued' AND durable = 0 AND place = :place
ORDER BY priority DESC, n LIMIT :limit

-- name: chosen
SELECT value AS n FROM json_each(:ns)

-- name: find_ready_tasks
-- The tasks of queued jobs, without those to be skipped.
SELECT json_group_array(task) FROM job_count
WHERE state = 'queued' AND durable = 1 AND many > 0 AND task NOT IN (SELECT value FROM json_each(:skip))

-- name: find_ready_of_task
SELECT json_group_array(json_array(-priority, n)) FROM (
    SELECT n, priority FROM job WHERE state = 'queued' AND durable = 1 AND task = :task
    ORDER BY priority DESC, n LIMIT :limit
)

-- name: find_ready_here
SELECT json_group_array(json_array(-priority, n)) FROM (
    SELECT n, priority FROM job WHERE state = 'queued' AND durable = 0 AND place = :place
    ORDER BY priority DESC, n LIMIT :limit
)

-- name: claim_jobs
UPDATE job SET state = 'running', attempt = attempt + 1, token = :token, lease_until = :lease_until, place = :place,
               started_at = coalesce(started_at, :now_ms), reported = NULL
WHERE n IN (SELECT value FROM json_each(:ns)) AND state = 'queued'

-- name: live_leases
-- Those of the given [n, token] that still hold, with the reason of a requested cancel and the progress; and whether any
-- job waits.
SELECT json_group_array(json_array(job.n, job.token, job.cancel_reason, job.progress)),
       EXISTS (SELECT 1 FROM job_count WHERE state = 'waiting' AND many > 0)
FROM json_each(:pairs) v
JOIN job ON job.n = v.value->>0
WHERE job.state = 'running' AND job.token = v.value->>1

-- name: lease_holds
SELECT 1 FROM job WHERE n = ? AND token = ? AND state = 'running'

-- name: state_of
SELECT state FROM job WHERE id = ?

-- name: settle_jobs
WITH ended (n, state, run_at, finished_at, result, error_type, error_message, progress, attempt, cancel_reason,
            reported) AS (
    VALUES {rows}
)
UPDATE job SET state = ended.state, run_at = coalesce(ended.run_at, job.run_at),
               absolute = CASE WHEN ended.run_at IS NULL THEN absolute ELSE 0 END, finished_at = ended.finished_at,
               result = ended.result, error_type = ended.error_type, error_message = ended.error_message,
               progress = coalesce(ended.progress, job.progress), attempt = ended.attempt,
               reported = coalesce(ended.reported, job.reported),
               cancel_reason = ended.cancel_reason, token = NULL, lease_until = NULL
FROM ended WHERE job.n = ended.n

-- name: keep_failed
INSERT OR REPLACE INTO failed_attempt (job, attempt, place, traceback) VALUES (:n, :attempt, :place, :traceback)

-- name: forget_earlier_failed
-- A job may be tried again without end: the rows of its last attempts are kept.
DELETE FROM failed_attempt WHERE job = :n AND attempt <= :attempt - :most

-- name: find_failed
SELECT json_group_array(json_array(attempt, place, traceback)) FROM failed_attempt WHERE job = :n

-- name: find_attempt_events
-- The events that begin and end attempts, oldest first, the latest of them where there are very many.
SELECT json_group_array(json_array(type, at, attempt, data)) FROM (
    SELECT * FROM (
        SELECT seq, type, at, attempt, data FROM event
        WHERE job = :n AND type IN (
            'job.started', 'job.retrying', 'job.queued', 'job.succeeded', 'job.failed', 'job.cancelled'
        ) ORDER BY seq DESC LIMIT :most
    ) ORDER BY seq
)

-- name: find_job_of_attempts
SELECT n, place FROM job WHERE id = :id

-- name: find_next_in_batch
-- The first unfinished job of each batch, where it waits. One look into an index a batch, however long it is.
SELECT json_group_array(n) FROM (
    SELECT (SELECT min(n) FROM job WHERE batch = ended.value AND batch <> id AND finished_at IS NULL) AS first
    FROM (SELECT DISTINCT value FROM json_each(:batches)) AS ended
    WHERE NOT EXISTS (SELECT 1 FROM job WHERE id = ended.value AND finished_at IS NULL)
) CROSS JOIN job ON n = first WHERE state = 'waiting'

-- name: find_waiting_of_batches
SELECT json_group_array(n) FROM job
WHERE batch IN (SELECT value FROM json_each(:batches)) AND batch <> id AND finished_at IS NULL AND state = 'waiting'

-- name: stops_on_failure
SELECT stop_on_failure FROM job WHERE n = ?

-- name: cancel_jobs
UPDATE job SET state = 'cancelled', finished_at = :now_ms, cancel_reason = :reason,
               error_type = NULL, error_message = NULL
WHERE n IN (SELECT value FROM json_each(:ns)) AND state IN ('waiting', 'scheduled', 'queued')

-- name: request_cancel
UPDATE job SET cancel_reason = :reason WHERE n = :n AND state = 'running' AND cancel_reason IS NULL

-- name: retry_job
-- The attempts made stay counted; as many more are allowed as the first time.
UPDATE job SET state = 'queued', max_attempts = attempt + 1 + retries, crashes = 0, finished_at = NULL, result = NULL,
               error_type = NULL, error_message = NULL, cancel_reason = NULL, progress = NULL, reported = NULL, run_at = :now_ms,
               started_at = NULL
WHERE n = :n AND state IN ('succeeded', 'failed', 'cancelled')

-- name: report_progress
UPDATE job SET progress = v.value->>2, reported = :report
FROM json_each(:reports) v
WHERE job.n = v.value->>0 AND job.token = v.value->>1 AND job.state = 'running'

-- name: renew_leases
UPDATE job SET lease_until = :lease_until WHERE state = 'running' AND place = :place

-- name: running_here
-- The running jobs of a process: {id: the reason of a requested cancel, or null}.
SELECT json_group_object(id, cancel_reason) FROM job WHERE state = 'running' AND place = :place

-- name: busy_places
-- The places that running jobs, and jobs bound to their process, name: one step of an index for each place, not for
-- each job.
WITH RECURSIVE running (place) AS (
    SELECT min(place) FROM job WHERE state = 'running'
    UNION ALL
    SELECT (SELECT min(place) FROM job WHERE state = 'running' AND place > running.place)
    FROM running WHERE running.place IS NOT NULL
), bound (place) AS (
    SELECT min(place) FROM job WHERE durable = 0 AND finished_at IS NULL
    UNION ALL
    SELECT (SELECT min(place) FROM job WHERE durable = 0 AND finished_at IS NULL AND place > bound.place)
    FROM bound WHERE bound.place IS NOT NULL
)
SELECT json_group_array(place) FROM (
    SELECT place FROM running WHERE place IS NOT NULL UNION SELECT place FROM bound WHERE place IS NOT NULL
)

-- name: find_lost
-- Running jobs whose place is gone, or whose lease has lapsed and whose place has not been heard of either.
SELECT json_group_array(json_array(n, at_most_once, durable, crashes, cancel_reason, batch, stop_on_failure))
FROM job
WHERE state = 'running' AND (
    place IN (SELECT value FROM json_each(:gone))
    OR (lease_until < :monotonic_ms AND place IN (SELECT value FROM json_each(:silent)))
)

-- name: find_bound
-- Jobs whose function lived only in a place that is gone, a slice at a time.
SELECT json_group_array(json_array(n, batch, stop_on_failure)) FROM (
    SELECT n, batch, stop_on_failure FROM job
    WHERE durable = 0 AND finished_at IS NULL AND state <> 'running' AND place IN (SELECT value FROM json_each(:gone))
    LIMIT :limit
)

-- name: requeue_lost
UPDATE job SET state = 'queued', crashes = crashes + 1, max_attempts = max_attempts + 1, token = NULL,
               lease_until = NULL, place = CASE WHEN durable = 1 THEN NULL ELSE place END
WHERE n IN (SELECT value FROM json_each(:ns)) AND state = 'running'

-- name: fail_lost
UPDATE job SET state = 'failed', crashes = crashes + (state = 'running'), finished_at = :now_ms, error_type = :type,
               error_message = :message, token = NULL, lease_until = NULL
WHERE n IN (SELECT value FROM json_each(:ns)) AND finished_at IS NULL

-- name: cancel_lost
UPDATE job SET state = 'cancelled', finished_at = :now_ms, token = NULL, lease_until = NULL,
               error_type = NULL, error_message = NULL
WHERE n IN (SELECT value FROM json_each(:ns)) AND state = 'running'

-- name: find_purgeable
SELECT json_group_array(n) FROM (
    SELECT n FROM job WHERE finished_at < :before_ms ORDER BY finished_at LIMIT :limit
)

-- name: still_purgeable
-- A job may have been retried since a reader found it.
SELECT json_group_array(n) FROM job WHERE n IN (SELECT value FROM json_each(:ns)) AND finished_at < :before_ms

-- name: mark_purged
-- The last event of each job by its index alone, however many there are.
UPDATE log SET purged = max(purged, coalesce(
    (SELECT max((SELECT max(seq) FROM event WHERE job = value)) FROM json_each(:ns)), 0))

-- name: delete_jobs
DELETE FROM job WHERE n IN (SELECT value FROM json_each(:ns))

-- name: delete_failed
DELETE FROM failed_attempt WHERE job IN (SELECT value FROM json_each(:ns))

-- name: remember_purged
INSERT INTO purged_job SELECT value FROM json_each(:ns) WHERE true

-- name: delete_events
DELETE FROM event WHERE seq IN (
    SELECT seq FROM purged_job JOIN event ON event.job = purged_job.n ORDER BY purged_job.n LIMIT :limit
)

-- name: forget_purged
DELETE FROM purged_job WHERE NOT EXISTS (SELECT 1 FROM event WHERE event.job = purged_job.n)

-- name: count_waiting
-- Jobs that have not begun, as the database has counted them: [task, durable, state, how many].
SELECT json_group_array(json_array(task, durable, state, many)) FROM job_count WHERE many > 0

-- name: count_running
SELECT count(*) FROM job WHERE state = 'running'

-- name: count_owners
-- How many jobs of each of the given owners have not begun. Of an owner it counts :most and no more.
SELECT json_group_object(v.value, (
    SELECT count(*) FROM (
        SELECT 1 FROM job WHERE owner = v.value AND finished_at IS NULL AND state <> 'running' LIMIT :most
    )
)) FROM json_each(:owners) v

-- name: find_owners
-- The owners of unfinished jobs, from one to the next. Asked once, at the start.
WITH RECURSIVE known (name) AS (
    SELECT min(owner) FROM job WHERE finished_at IS NULL
    UNION ALL
    SELECT (SELECT min(owner) FROM job WHERE finished_at IS NULL AND owner > name) FROM known WHERE name IS NOT NULL
)
SELECT json_group_array(name) FROM known WHERE name IS NOT NULL

-- name: find_open_values
-- Of each open job its texts as bytes, and how many of its values are stored as something else than their column's type.
SELECT n, (typeof(id) = 'blob') + (typeof(task) = 'blob') + (typeof(queue) = 'blob') + (typeof(owner) = 'blob') +
       (typeof(batch) = 'blob') + (typeof(tags) = 'blob') + (typeof(args) = 'blob') + (typeof(personal) = 'blob') +
       (typeof(place) = 'blob') + (typeof(idempotency_key) = 'blob') + (typeof(fingerprint) = 'blob') +
       (typeof(unique_key) = 'blob') + (typeof(progress) = 'blob') + (typeof(error_type) = 'blob') +
       (typeof(error_message) = 'blob') + (typeof(cancel_reason) = 'blob') +
       (typeof(priority) <> 'integer') + (typeof(retries) <> 'integer') + (typeof(created_at) <> 'integer') +
       (typeof(run_at) <> 'integer') + (typeof(attempt) <> 'integer') + (typeof(max_attempts) <> 'integer') +
       (typeof(crashes) <> 'integer') + (typeof(token) NOT IN ('integer', 'null')) +
       (typeof(lease_until) NOT IN ('integer', 'null')) + (typeof(started_at) NOT IN ('integer', 'null')),
       CAST(id AS BLOB), CAST(task AS BLOB), CAST(queue AS BLOB), CAST(owner AS BLOB), CAST(batch AS BLOB),
       CAST(tags AS BLOB), CAST(args AS BLOB), CAST(personal AS BLOB), CAST(place AS BLOB),
       CAST(idempotency_key AS BLOB), CAST(fingerprint AS BLOB), CAST(unique_key AS BLOB), CAST(progress AS BLOB),
       CAST(error_type AS BLOB), CAST(error_message AS BLOB), CAST(cancel_reason AS BLOB)
FROM job WHERE finished_at IS NULL

-- name: repair_job
UPDATE job SET id = ?, task = ?, queue = ?, owner = ?, batch = ?, tags = ?, args = ?, personal = ?, place = ?,
               idempotency_key = ?, fingerprint = ?, unique_key = ?, progress = ?, error_type = ?, error_message = ?,
               cancel_reason = ?
WHERE n = ?

-- name: fail_unreadable
UPDATE job SET state = 'failed', finished_at = :now_ms, error_type = :type, error_message = :message, token = NULL,
               lease_until = NULL, cancel_reason = NULL,
               priority = CASE typeof(priority) WHEN 'integer' THEN priority ELSE 0 END,
               retries = CASE typeof(retries) WHEN 'integer' THEN retries ELSE 0 END,
               created_at = CASE typeof(created_at) WHEN 'integer' THEN created_at ELSE :now_ms END,
               run_at = CASE typeof(run_at) WHEN 'integer' THEN run_at ELSE :now_ms END,
               attempt = CASE typeof(attempt) WHEN 'integer' THEN attempt ELSE 0 END,
               max_attempts = CASE typeof(max_attempts) WHEN 'integer' THEN max_attempts ELSE 1 END,
               crashes = CASE typeof(crashes) WHEN 'integer' THEN crashes ELSE 0 END,
               started_at = CASE typeof(started_at) WHEN 'integer' THEN started_at END
WHERE n = :n

-- name: batch_of
SELECT batch, stop_on_failure FROM job WHERE n = ?
