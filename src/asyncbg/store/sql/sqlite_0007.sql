-- Version 7: what is known of failed attempts beyond their events.

-- Only attempts that raised have a row: that of a job that succeeds costs nothing. Times, outcome and error of every
-- attempt are in its events. The key holds one job's rows together, so that they are deleted with it.
CREATE TABLE failed_attempt (
    job       INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    place     TEXT    NOT NULL,  -- of the process that ran it
    traceback TEXT,              -- masked, and encrypted where arguments are
    PRIMARY KEY (job, attempt)
) WITHOUT ROWID;
