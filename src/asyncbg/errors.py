"""Every error asyncbg raises on purpose.

::

    AsyncBGError
    ├── SettingsError            a setting is unknown or malformed
    ├── NotRunningError          the engine is used before it started or after it stopped
    │   └── LeaseLostError       an attempt goes on that has lost its lease: another one may run the job
    ├── OverloadedError          a bound is reached; come back after ``retry_after_s``
    │   └── QuotaError           the bound is that of the owner
    ├── DatabaseError            the database cannot be used now
    │   └── OutageError          it is in trouble itself: locked, full, damaged, gone
    ├── TaskError
    │   ├── UnknownTaskError     no task of that name is registered
    │   ├── TaskChangedError     a stored name leads to another function now
    │   ├── DuplicateTaskError   the name is taken by another function
    │   ├── InvalidTaskError     what was handed over cannot be a task: a generator, a method, a coroutine object
    │   ├── ArgumentsError       the arguments do not fit the task's signature
    │   │   ├── UniqueKeyError   no unique key can be made of them
    │   │   └── OversizeArgumentsError   they are larger than what is stored with a job
    │   ├── OptionsError         a delay, a time, a priority, a tag, an owner or a key that no job can have
    │   └── ResultError          the task's result has no JSON form, or is too large; told on the job
    ├── JobError
    │   ├── JobNotFoundError     no such job, or not yours
    │   ├── JobStateError        the job's state forbids it
    │   ├── JobFailedError       waited for a result; the job failed
    │   ├── TracebackError       the cause of that: what the task raised, as text
    │   ├── JobCancelledError    waited for a result; the job was cancelled
    │   └── JobTimeoutError      waited for a result; it did not come in time
    ├── UnreadableError          an encrypted value cannot be decrypted: its key is missing, or it was changed
    ├── IdempotencyError         the key was used with another body
    ├── BadCursorError           a page cursor that asyncbg did not make
    ├── TransactionError         the caller's own transaction cannot carry the job
    └── FinalError               raised inside a task: fail now, do not retry
        ├── UnawaitedError       the task made a coroutine and nobody awaited it
        └── …                    services derive theirs from it where another try is pointless
"""

from collections.abc import Sequence
from typing import TypedDict


class ErrorItem(TypedDict):
    """One thing wrong with an input: where, what, and pydantic's name for it. Never the input itself."""

    loc: list[str | int]
    msg: str
    type: str


class AsyncBGError(Exception):
    """The root of all errors raised by asyncbg."""


class SettingsError(AsyncBGError):
    """A setting is unknown or malformed; the message is one line that names it."""


class NotRunningError(AsyncBGError):
    """The engine was used before it started or after it stopped."""


class LeaseLostError(NotRunningError):
    """An attempt goes on though it has lost its lease, so another one may run the job. Nothing was stored or sent."""

    def __init__(self, job_id: str) -> None:
        """Name the job."""
        super().__init__(f"this attempt at job {job_id} has lost its lease; whatever it still does counts for nothing")
        self.job_id = job_id


class OverloadedError(AsyncBGError):
    """A bound is reached. Nothing was stored; come back after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Say which bound, and when to come back."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaError(OverloadedError):
    """The owner's own bound is reached, whatever room others have left. Nothing was stored."""


class DatabaseError(AsyncBGError):
    """The database cannot be used now: locked, full, read-only, corrupt or of a newer version. Nothing was stored."""


class OutageError(DatabaseError):
    """The database itself is in trouble, whoever's statement met it. The log tells it once, not at every failure."""


class TaskError(AsyncBGError):
    """Something is wrong with a task or the way it is called."""


class UnknownTaskError(TaskError):
    """No task of that name is registered."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        """Name the missing task and those there are."""
        super().__init__(f"unknown task {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        self.name = name
        self.known = sorted(known)


class TaskChangedError(TaskError):
    """The name under which a job's function was stored leads to something else now; nothing was run."""

    def __init__(self, name: str, why: str) -> None:
        """Name the task and say what it leads to."""
        super().__init__(f"{name} {why}; its job was not run: deploy the function under its name, then retry the job")
        self.name = name


class DuplicateTaskError(TaskError):
    """A task name is taken by another function; give one of them ``name=``."""

    def __init__(self, name: str) -> None:
        """Name the task."""
        super().__init__(f"a task named {name!r} is registered already; give one of them another name=")
        self.name = name


class InvalidTaskError(TaskError, TypeError):
    """What was handed over cannot be a task."""

    def __init__(self, name: str, reason: str) -> None:
        """Name it and say why, and what to hand over."""
        super().__init__(f"{name!r} cannot be a task: {reason}")
        self.name = name


class ArgumentsError(TaskError, TypeError, ValueError):
    """The arguments do not fit the task's signature. Holds what and where, never the values."""

    def __init__(self, task: str, errors: Sequence[ErrorItem]) -> None:
        """Name the task and what is wrong with its arguments."""
        listed = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in errors)
        super().__init__(f"bad arguments for task {task!r}: {listed}")
        self.task = task
        self.errors = list(errors)


class UniqueKeyError(ArgumentsError):
    """The ``key=`` of a task does not fit its parameters, or no key can be made of the arguments of a call."""

    def __init__(self, task: str, what: str) -> None:
        """Name the task and say what is the matter with its key."""
        super().__init__(task, [ErrorItem(loc=["key"], msg=what, type="unique_key")])
        self.args = (f"bad key= of task {task!r}: {what}",)


class OversizeArgumentsError(ArgumentsError):
    """The arguments are larger as JSON than what is stored with a job."""

    def __init__(self, task: str, size: int, most: int) -> None:
        """Say how large they are and what is allowed."""
        msg = (
            f"{size:,} bytes as JSON are more than {most:,} (ASYNCBG_JOBS__MAX_ARGS_BYTES); "
            "hand over the path of a file or the id of a row instead"
        )
        super().__init__(task, [ErrorItem(loc=[], msg=msg, type="too_large")])


class OptionsError(TaskError, ValueError):
    """A job cannot have such a delay, time, priority, tag, owner or key. ``option`` names which; nothing was stored."""

    def __init__(self, option: str, msg: str) -> None:
        """Name the option and say what it should be; never the value."""
        super().__init__(f"{option} {msg}")
        self.option = option
        self.msg = msg


class ResultError(TaskError):
    """The task ran, and what it returned cannot be stored: its job fails and is not retried, since the work is done."""


class JobError(AsyncBGError):
    """Something about one job. ``job_id`` names it."""

    def __init__(self, job_id: str, message: str) -> None:
        """Name the job and say what is the matter."""
        super().__init__(message)
        self.job_id = job_id


class JobNotFoundError(JobError):
    """There is no such job, or the caller may not see it."""

    def __init__(self, job_id: str) -> None:
        """Name the job."""
        super().__init__(job_id, f"no job {job_id!r}; it may have been purged")


class JobStateError(JobError):
    """The job's state forbids what was asked."""

    def __init__(self, job_id: str, state: str, action: str) -> None:
        """Name the job, its state and what was asked."""
        super().__init__(job_id, f"cannot {action} job {job_id}: it is {state}")
        self.state = state
        self.action = action


class JobFailedError(JobError):
    """The job whose result was awaited failed; ``type`` and ``detail`` are those of its error."""

    def __init__(self, job_id: str, error_type: str, detail: str) -> None:
        """Carry the job's error."""
        super().__init__(job_id, f"job {job_id} failed: {error_type}: {detail}")
        self.type = error_type
        self.detail = detail


class TracebackError(JobError):
    """The cause of a JobFailedError where the task ran in another process, or long ago: its traceback as text."""

    def __init__(self, job_id: str, traceback: str) -> None:
        """Carry the text."""
        super().__init__(job_id, f"\n{traceback}")
        self.traceback = traceback


class JobCancelledError(JobError):
    """The job whose result was awaited was cancelled."""

    def __init__(self, job_id: str, reason: str) -> None:
        """Carry the reason."""
        super().__init__(job_id, f"job {job_id} was cancelled: {reason or 'no reason given'}")
        self.reason = reason


class JobTimeoutError(JobError, TimeoutError):
    """The job did not reach a final state in the time the caller was ready to wait."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        """Say how long was waited."""
        super().__init__(job_id, f"job {job_id} is not final after {timeout_s:g} s")
        self.timeout_s = timeout_s


class IdempotencyError(AsyncBGError):
    """An idempotency key was used before with another request body."""

    def __init__(self, key: str) -> None:
        """Keep the key; it may be made of somebody's address, so the message does not name it."""
        super().__init__("this idempotency key was used before with another request; use a new key")
        self.key = key


class UnreadableError(AsyncBGError):
    """An encrypted value cannot be decrypted: its key is not in the ring, or it is not what was stored here."""


class BadCursorError(AsyncBGError):
    """A page cursor that asyncbg did not make."""

    def __init__(self) -> None:
        super().__init__('the cursor is not one of ours; send "next" of the page before, or none for the first page')


class AuthError(AsyncBGError):
    """Who calls is not known, or may not do this. Nothing was done."""


class UnauthenticatedError(AuthError):
    """No credentials came with a request that needs them, or they are no good: unknown, expired or revoked."""

    def __init__(self, message: str = "", *, is_wrong: bool = False) -> None:
        """Say what to send; ``is_wrong`` where something was sent and is no good."""
        super().__init__(message or "this needs an API key: send it as Authorization: Bearer KEY")
        self.is_wrong = is_wrong


class ScopeError(AuthError):
    """The caller is known, and its key lacks the scope that this needs."""

    def __init__(self, scope: str) -> None:
        """Name the scope."""
        super().__init__(f"this needs the scope {scope}, which the key does not have")
        self.scope = scope


class CrossSiteError(AuthError):
    """A browser was sent here by a page of another site, with credentials that it adds by itself."""


class ForeignHostError(AuthError):
    """A caller without a key came by another way than straight from this machine."""


class TransactionError(AsyncBGError, ValueError):
    """The caller's own transaction cannot carry the job: none is open, another database, a job that is not durable."""


class FinalError(AsyncBGError):
    """Raise it, or a subclass, inside a task: the job fails at once and is not retried."""


class UnawaitedError(FinalError):
    """A task returned, and a coroutine that it made was never awaited: that work was not done."""

    def __init__(self, task: str, coroutines: Sequence[str]) -> None:
        """Name the task and the coroutines."""
        named = ", ".join(coroutines)
        super().__init__(f"task {task!r} called {named} and never awaited it, so it did not run; write await")
        self.coroutines = list(coroutines)
