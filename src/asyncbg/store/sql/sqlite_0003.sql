-- Version 3: purged jobs whose events are still being deleted.

-- A job may have any number of events, and a slice of a purge deletes a bounded number of rows. The job goes first,
-- which hides all of its events; this row remembers them until the last one is deleted, also over a crash.
CREATE TABLE purged_job (
    n INTEGER PRIMARY KEY
);
