-- Version 5: what is asked all the time costs the same, however many jobs there are.

-- Jobs that any process may claim, and those whose function lives in one process only: a process never reads past the
-- jobs of another one.
DROP INDEX job_ready;
CREATE INDEX job_ready ON job (priority DESC, n) WHERE state = 'queued' AND durable = 1;
CREATE INDEX job_ready_here ON job (place, priority DESC, n) WHERE state = 'queued' AND durable = 0;
-- A process that meets tasks it does not know claims task by task: it never reads past the jobs of the others.
CREATE INDEX job_ready_task ON job (task, priority DESC, n) WHERE state = 'queued' AND durable = 1;
-- The first unfinished job of a batch, however many of its jobs have ended.
CREATE INDEX job_batch_open ON job (batch, n) WHERE batch <> id AND finished_at IS NULL;
-- The oldest ends first, also where many older jobs have not begun.
CREATE INDEX job_finished ON job (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX job_open_owner ON job (owner) WHERE finished_at IS NULL;
-- A list of jobs that are not final goes past none that is.
CREATE INDEX job_open ON job (n) WHERE finished_at IS NULL;
DROP INDEX job_waiting;

-- How many jobs of each task have not begun, by state. The database counts, so that no statement can forget to.
CREATE TABLE job_count (
    state   TEXT    NOT NULL CHECK (state IN ('queued', 'scheduled', 'waiting')),
    task    TEXT    NOT NULL,
    durable INTEGER NOT NULL,
    many    INTEGER NOT NULL CHECK (many >= 0),
    PRIMARY KEY (state, task, durable)
) WITHOUT ROWID;
INSERT INTO job_count
SELECT state, task, durable, count(*) FROM job WHERE state IN ('queued', 'scheduled', 'waiting') GROUP BY 1, 2, 3;

-- CASE as in the table of moves: IN would build a list for each row. The end of a running job counts nothing.
CREATE TRIGGER job_counted AFTER INSERT ON job
WHEN CASE new.state WHEN 'queued' THEN 1 WHEN 'scheduled' THEN 1 WHEN 'waiting' THEN 1 ELSE 0 END
BEGIN
    INSERT INTO job_count VALUES (new.state, new.task, new.durable, 1) ON CONFLICT DO UPDATE SET many = many + 1;
END;
CREATE TRIGGER job_recounted AFTER UPDATE OF state ON job
WHEN old.state <> new.state AND (new.finished_at IS NULL OR old.state <> 'running')
BEGIN
    UPDATE job_count SET many = many - 1
    WHERE task = old.task AND durable = old.durable AND state = old.state
      AND CASE old.state WHEN 'queued' THEN 1 WHEN 'scheduled' THEN 1 WHEN 'waiting' THEN 1 ELSE 0 END;
    INSERT INTO job_count
    SELECT new.state, new.task, new.durable, 1
    WHERE CASE new.state WHEN 'queued' THEN 1 WHEN 'scheduled' THEN 1 WHEN 'waiting' THEN 1 ELSE 0 END
    ON CONFLICT DO UPDATE SET many = many + 1;
END;
CREATE TRIGGER job_uncounted AFTER DELETE ON job WHEN old.finished_at IS NULL BEGIN
    UPDATE job_count SET many = many - 1 WHERE task = old.task AND durable = old.durable AND state = old.state;
END;
