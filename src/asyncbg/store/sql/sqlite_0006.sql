-- Version 6: the progress of jobs that run in another process.

-- How many commits have changed the progress of a job.
ALTER TABLE log ADD COLUMN reports INTEGER NOT NULL DEFAULT 0;
-- Which of them changed this job's, in this attempt: a process that follows the log reads what is newer than it knows.
ALTER TABLE job ADD COLUMN reported INTEGER;
CREATE INDEX job_reported ON job (reported) WHERE reported IS NOT NULL;
