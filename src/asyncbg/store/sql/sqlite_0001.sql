-- Version 1 of the engine's tables.

-- One row: the name of this database (epoch) and the last numbers given out. Numbers are never given out twice,
-- whatever is purged, so a cursor into the log never means another event.
CREATE TABLE log (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    epoch  TEXT    NOT NULL,
    seq    INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    purged INTEGER NOT NULL, -- the highest number of an event that was purged
    wall_offset INTEGER NOT NULL -- wall-clock time less monotonic time, in ms, when last looked at
);

CREATE TABLE job (
    n               INTEGER PRIMARY KEY,
    id              TEXT    NOT NULL UNIQUE,
    task            TEXT    NOT NULL,
    queue           TEXT    NOT NULL,
    owner           TEXT    NOT NULL,
    batch           TEXT    NOT NULL,
    tags            TEXT    NOT NULL DEFAULT '[]',
    state           TEXT    NOT NULL,
    priority        INTEGER NOT NULL,
    durable         INTEGER NOT NULL CHECK (durable IN (0, 1)),
    at_most_once    INTEGER NOT NULL CHECK (at_most_once IN (0, 1)),
    stop_on_failure INTEGER NOT NULL CHECK (stop_on_failure IN (0, 1)),
    retries         INTEGER NOT NULL CHECK (retries >= 0),
    args            TEXT    NOT NULL,
    personal        TEXT    NOT NULL,
    created_at      INTEGER NOT NULL CHECK (created_at > 0),
    run_at          INTEGER NOT NULL CHECK (run_at > 0),
    place           TEXT,
    idempotency_key TEXT,
    fingerprint     TEXT,
    unique_key      TEXT,
    absolute        INTEGER NOT NULL DEFAULT 0 CHECK (absolute IN (0, 1)), -- whether run_at names a time of day (at=)
    attempt         INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    max_attempts    INTEGER NOT NULL DEFAULT 1,
    crashes         INTEGER NOT NULL DEFAULT 0,
    token           INTEGER,
    lease_until     INTEGER,
    started_at      INTEGER,
    finished_at     INTEGER,
    progress        TEXT,
    result          TEXT,
    error_type      TEXT,
    error_message   TEXT,
    cancel_reason   TEXT,
    -- One CASE, the commonest state first: it stops at the first match, where a row of CHECKs costs three times as much.
    CHECK (CASE state
        WHEN 'queued'    THEN token IS NULL AND lease_until IS NULL AND finished_at IS NULL
        WHEN 'running'   THEN token IS NOT NULL AND lease_until IS NOT NULL AND finished_at IS NULL
        WHEN 'succeeded' THEN token IS NULL AND lease_until IS NULL AND finished_at IS NOT NULL AND error_type IS NULL
        WHEN 'waiting'   THEN token IS NULL AND lease_until IS NULL AND finished_at IS NULL
        WHEN 'scheduled' THEN token IS NULL AND lease_until IS NULL AND finished_at IS NULL
        WHEN 'failed'    THEN token IS NULL AND lease_until IS NULL AND finished_at IS NOT NULL AND error_type IS NOT NULL
        WHEN 'cancelled' THEN token IS NULL AND lease_until IS NULL AND finished_at IS NOT NULL
        ELSE 0
    END)
);

-- What to run next: only queued jobs are in it, so it stays small.
CREATE INDEX job_ready ON job (priority DESC, n) WHERE state = 'queued';
CREATE INDEX job_due ON job (run_at) WHERE state = 'scheduled';
CREATE INDEX job_running ON job (place, lease_until) WHERE state = 'running';
-- A batch is named by its first job; only the others need an index to be found.
CREATE INDEX job_batch ON job (batch, n) WHERE batch <> id;
CREATE INDEX job_waiting ON job (n) WHERE state = 'waiting';
CREATE INDEX job_ended_badly ON job (state, n) WHERE state IN ('failed', 'cancelled');
CREATE INDEX job_bound ON job (place) WHERE durable = 0 AND finished_at IS NULL;
CREATE UNIQUE INDEX job_idempotency ON job (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX job_unique ON job (task, unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL;

-- The table of moves (job.py, TRANSITIONS), held by the database itself. AFTER costs half of what BEFORE does.
CREATE TRIGGER job_moves AFTER UPDATE OF state ON job
WHEN old.state <> new.state AND NOT CASE old.state
    WHEN 'queued'    THEN new.state = 'running' OR new.state = 'cancelled' OR new.state = 'failed'
    WHEN 'running'   THEN new.state <> 'waiting'
    WHEN 'waiting'   THEN new.state = 'queued' OR new.state = 'scheduled' OR new.state = 'cancelled' OR new.state = 'failed'
    WHEN 'scheduled' THEN new.state = 'queued' OR new.state = 'cancelled' OR new.state = 'failed'
    ELSE new.state = 'queued'
END
BEGIN
    SELECT RAISE(ABORT, 'the transition table forbids this move of a job');
END;

CREATE TABLE event (
    seq     INTEGER PRIMARY KEY,
    job     INTEGER NOT NULL,
    type    TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    data    TEXT
);
CREATE INDEX event_job ON event (job);
