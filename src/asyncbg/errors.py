"""Every error asyncbg raises on purpose.

::

    AsyncBGError
    ├── SettingsError            a setting is unknown or malformed
    ├── NotRunningError          the engine is used before it started or after it stopped
    │   └── LeaseLostError       an attempt still runs after it lost its lease; another may run the job
    ├── OverloadedError          a limit is reached; retry after ``retry_after_s``
    │   └── QuotaError           the limit of the owner is reached
    ├── DatabaseError            the database cannot be used now
    │   └── OutageError          the database as a whole fails: locked, full, damaged, gone
    ├── TaskError
    │   ├── UnknownTaskError     no task of that name is registered
    │   ├── TaskChangedError     a stored name leads to another function now
    │   ├── DuplicateTaskError   the name is taken by another function
    │   ├── InvalidTaskError     the object cannot be a task: a generator, a method, a coroutine object
    │   ├── ArgumentsError       the arguments do not fit the task's signature
    │   │   ├── UniqueKeyError   no unique key can be built from them
    │   │   └── OversizeArgumentsError   they exceed the size limit
    │   ├── OptionsError         an invalid delay, time, priority, tag, owner or key
    │   └── ResultError          the task's result has no JSON form, or is too large; stored on the job
    ├── JobError
    │   ├── JobNotFoundError     no such job, or not the caller's
    │   ├── JobStateError        the job's state forbids it
    │   ├── JobFailedError       waited for a result; the job failed
    │   ├── TracebackError       the cause of that: what the task raised, as text
    │   ├── JobCancelledError    waited for a result; the job was cancelled
    │   └── JobTimeoutError      waited for a result; the time ran out
    ├── UnreadableError          an encrypted value cannot be decrypted: its key is missing, or it was changed
    ├── IdempotencyError         the key was used with another body
    ├── BadCursorError           a page cursor that asyncbg did not make
    ├── KeyTakenError            an API key of that name is in use
    ├── KeyNotFoundError         no API key of that name is in use
    ├── KeyNameError             a name that no API key can have
    ├── TransactionError         the caller's own transaction cannot carry the job
    └── FinalError               raised inside a task: fail, do not retry
        ├── UnawaitedError       the task created a coroutine that was never awaited
        └── …                    subclasses for failures that a retry cannot mend
"""

from collections.abc import Collection, Sequence
from typing import TypedDict


class ErrorItem(TypedDict):
    """One error of an input: where, what, and pydantic's name for it. Never the input itself."""

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
    """An attempt still runs after it lost its lease, so another may run the job. Nothing was stored or sent."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"this attempt at job {job_id} has lost its lease; its further writes are discarded")
        self.job_id = job_id


class OverloadedError(AsyncBGError):
    """A limit is reached. Nothing was stored; retry after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaError(OverloadedError):
    """The owner's own limit is reached. Nothing was stored."""


class DatabaseError(AsyncBGError):
    """The database cannot be used now: locked, full, read-only, corrupt or of a newer version. Nothing was stored."""


class OutageError(DatabaseError):
    """The database as a whole fails, not one statement. It is logged once, not at every failure."""


class TaskError(AsyncBGError):
    """The root of errors about a task or a call of it."""


class UnknownTaskError(TaskError):
    """No task of that name is registered."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"unknown task {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        self.name = name
        self.known = sorted(known)


class TaskChangedError(TaskError):
    """The name under which a job's function was stored refers to another function now; nothing was run."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}; its job was not run: deploy the function under its name, then retry the job")
        self.name = name


class DuplicateTaskError(TaskError):
    """A task name is taken by another function; give one of them ``name=``."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a task named {name!r} is registered already; give one of them another name=")
        self.name = name


class InvalidTaskError(TaskError, TypeError):
    """The object cannot be a task."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name!r} cannot be a task: {reason}")
        self.name = name


class ArgumentsError(TaskError, TypeError, ValueError):
    """The arguments do not fit the task's signature. Holds what and where, never the values."""

    def __init__(self, task: str, errors: Sequence[ErrorItem]) -> None:
        listed = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in errors)
        super().__init__(f"bad arguments for task {task!r}: {listed}")
        self.task = task
        self.errors = list(errors)


class UniqueKeyError(ArgumentsError):
    """The ``key=`` of a task does not fit its parameters, or no key can be built from the arguments of a call."""

    def __init__(self, task: str, what: str) -> None:
        super().__init__(task, [ErrorItem(loc=["key"], msg=what, type="unique_key")])
        self.args = (f"bad key= of task {task!r}: {what}",)


class OversizeArgumentsError(ArgumentsError):
    """The arguments as JSON exceed the size limit of a job."""

    def __init__(self, task: str, size: int, most: int) -> None:
        msg = (
            f"{size:,} bytes as JSON are more than {most:,} (ASYNCBG_JOBS__MAX_ARGS_BYTES); "
            "pass the path of a file or the id of a row instead"
        )
        super().__init__(task, [ErrorItem(loc=[], msg=msg, type="too_large")])


class OptionsError(TaskError, ValueError):
    """An invalid delay, time, priority, tag, owner or key. ``option`` names which; nothing was stored."""

    def __init__(self, option: str, msg: str) -> None:
        super().__init__(f"{option} {msg}")
        self.option = option
        self.msg = msg


class ResultError(TaskError):
    """The task ran, and its result cannot be stored: the job fails and is not retried, since the work is done."""


class JobError(AsyncBGError):
    """The root of errors about one job, named by ``job_id``."""

    def __init__(self, job_id: str, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobNotFoundError(JobError):
    """No such job exists, or the caller may not see it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id, f"no job {job_id!r}; it may have been purged")


class JobStateError(JobError):
    """The job's state forbids the action."""

    def __init__(self, job_id: str, state: str, action: str) -> None:
        super().__init__(job_id, f"cannot {action} job {job_id}: it is {state}")
        self.state = state
        self.action = action


class JobFailedError(JobError):
    """The job whose result was awaited failed; ``type`` and ``detail`` are those of its error."""

    def __init__(self, job_id: str, error_type: str, detail: str) -> None:
        super().__init__(job_id, f"job {job_id} failed: {error_type}: {detail}")
        self.type = error_type
        self.detail = detail


class TracebackError(JobError):
    """The cause of a JobFailedError where the exception itself is not available: its traceback as text."""

    def __init__(self, job_id: str, traceback: str) -> None:
        super().__init__(job_id, f"\n{traceback}")
        self.traceback = traceback


class JobCancelledError(JobError):
    """The job whose result was awaited was cancelled."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(job_id, f"job {job_id} was cancelled: {reason or 'no reason given'}")
        self.reason = reason


class JobTimeoutError(JobError, TimeoutError):
    """The job did not become final within the caller's timeout."""

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(job_id, f"job {job_id} is not final after {timeout_s:g} s")
        self.timeout_s = timeout_s


class IdempotencyError(AsyncBGError):
    """An idempotency key was used before with another request body."""

    def __init__(self, key: str) -> None:
        # The key may contain a person's address, so the message does not name it.
        super().__init__("this idempotency key was used before with another request; use a new key")
        self.key = key


class UnreadableError(AsyncBGError):
    """An encrypted value cannot be decrypted: its key is missing, or the value was changed."""


class BadCursorError(AsyncBGError):
    """A page cursor that asyncbg did not make."""

    def __init__(self) -> None:
        super().__init__('the cursor is not one of ours; send "next" of the page before, or none for the first page')


class AuthError(AsyncBGError):
    """The caller is not authenticated, or not authorized. Nothing was done."""


class UnauthenticatedError(AuthError):
    """Credentials are missing, or (``is_wrong``) invalid: unknown, expired or revoked."""

    def __init__(self, message: str = "", *, is_wrong: bool = False) -> None:
        super().__init__(message or "this needs an API key: send it as Authorization: Bearer KEY")
        self.is_wrong = is_wrong


class ScopeError(AuthError):
    """The caller's key lacks a required scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this needs the scope {scope}, which the key does not have")
        self.scope = scope


class CrossSiteError(AuthError):
    """A page of another site sent the request, with credentials that the browser adds automatically."""


class ForeignHostError(AuthError):
    """A caller without a key did not connect directly from this machine."""


class KeyTakenError(AsyncBGError):
    """An API key of that name is in use. A key's name is the owner of its jobs, so it belongs to one key at a time."""

    def __init__(self, name: str) -> None:
        """Name the key and the remedy."""
        super().__init__(f"the key {name} is in use; choose another name, or revoke it first")
        self.name = name


class KeyNotFoundError(AsyncBGError):
    """No API key of that name is in use."""

    def __init__(self, name: str) -> None:
        """Name the key."""
        super().__init__(f"no key {name} is in use; list the keys with: asyncbg keys list")
        self.name = name


class KeyNameError(AsyncBGError):
    """The name of an API key is malformed or reserved."""

    def __init__(self, reserved: Collection[str]) -> None:
        """Describe a valid name."""
        taken = ", ".join(sorted(reserved))
        super().__init__(f"a key's name is 1 to 64 letters, digits, dots, dashes and underscores, and not {taken}")


class TransactionError(AsyncBGError, ValueError):
    """The caller's own transaction cannot carry the job: none is open, another database, a job that is not durable."""


class FinalError(AsyncBGError):
    """Raise it, or a subclass, inside a task: the job fails and is not retried."""


class UnawaitedError(FinalError):
    """A task returned without awaiting a coroutine that it created: that work was not done."""

    def __init__(self, task: str, coroutines: Sequence[str]) -> None:
        named = ", ".join(coroutines)
        super().__init__(f"task {task!r} called {named} and never awaited it, so it did not run; write await")
        self.coroutines = list(coroutines)
