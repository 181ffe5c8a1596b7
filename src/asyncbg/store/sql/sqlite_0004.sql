-- Version 4: a unique key is each owner's own.

-- One open job for each value of a task's key and owner: across owners, the answer would name somebody else's job.
DROP INDEX job_unique;
CREATE UNIQUE INDEX job_unique ON job (owner, task, unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL;
