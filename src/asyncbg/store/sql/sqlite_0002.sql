-- Version 2: periodic tasks.

-- The last slot fired of each schedule, moved on in the transaction that stores the slot's job. It outlives the job,
-- so that a slot is neither fired twice nor forgotten, whatever is purged.
CREATE TABLE schedule (
    name TEXT    PRIMARY KEY,  -- task, expression and time zone
    slot INTEGER NOT NULL CHECK (slot > 0)
);
