"""The events that asyncbg itself publishes, one class for each type. Workflows declare theirs beside their code."""

from pydantic import BaseModel, Field

from asyncbg.core.event import EventType
from asyncbg.core.event_model import EventModel, Publisher, Storage, example_of
from asyncbg.core.job import JobState

_ID = "01a205a8-7c81-7000-a84f-7e8968cdc313"


class ErrorData(BaseModel):
    """Why an attempt or a job failed."""

    type: str = Field(description="the class of the exception, by its name", examples=["ConnectionError"])
    message: str = Field(description="its message, redacted", examples=["nobody answers"])


_ERROR = Field(
    description="the class of the exception and its message, redacted",
    examples=[example_of(ErrorData)],
)


class ProgressData(BaseModel):
    """How far a job is."""

    current: float = Field(description="done so far, in `unit`", examples=[3])
    total: float | None = Field(description="of how much, in `unit`; null where unknown", examples=[10])
    message: str = Field(description="a sentence for people; may be empty", examples=["3 of 10 sent"])
    unit: str = Field(description="what is counted; may be empty", examples=["messages"])


class JobStanding(BaseModel):
    """The current state of a job."""

    id: str = Field(description="the id of the job", examples=[_ID])
    task: str = Field(description="the name of its task", examples=["send_email"])
    state: JobState = Field(description="its state", examples=["scheduled"])
    batch: str = Field(description="the id of the first job of its request", examples=[_ID])
    owner: str = Field(description="who submitted it", examples=["anonymous"])
    attempt: int = Field(description="attempts begun", examples=[1])
    max_attempts: int = Field(description="attempts allowed", examples=[4])
    progress: ProgressData | None = Field(
        description="the latest it reported; null if it never did", examples=[example_of(ProgressData)]
    )
    error: ErrorData | None = Field(description="of its last attempt, if that failed", examples=[example_of(ErrorData)])


class _EngineEvent(EventModel):
    """The base of the engine's events about a job."""

    event_publisher = Publisher.ENGINE


class JobWaiting(_EngineEvent):
    """The job was accepted; an earlier job of its batch is not final yet."""

    event_type = EventType.WAITING.value


class JobScheduled(_EngineEvent):
    """The job was accepted and is due later."""

    event_type = EventType.SCHEDULED.value


class JobQueued(_EngineEvent):
    """The job is ready to run: accepted, due, released in its batch, retried by hand or rescued."""

    event_type = EventType.QUEUED.value

    reason: str = Field(
        default="",
        description="why it is queued again: `retried` by hand, or how the last attempt was lost or released",
        examples=["retried"],
    )


class JobStarted(_EngineEvent):
    """An attempt began."""

    event_type = EventType.STARTED.value


class JobProgress(_EngineEvent, ProgressData):
    """The task reported progress. Not stored: the latest value is kept on the job."""

    event_type = EventType.PROGRESS.value
    event_storage = Storage.NONE


class JobRetrying(_EngineEvent):
    """The attempt failed and another is due after `delay_s` seconds."""

    event_type = EventType.RETRYING.value

    error: ErrorData = _ERROR
    delay_s: float = Field(ge=0, description="seconds until the next attempt is due", examples=[2.25])


class JobSucceeded(_EngineEvent):
    """The task returned. Final."""

    event_type = EventType.SUCCEEDED.value


class JobFailed(_EngineEvent):
    """The job failed for good. Final."""

    event_type = EventType.FAILED.value

    error: ErrorData = _ERROR


class JobCancelled(_EngineEvent):
    """The job was cancelled. Final."""

    event_type = EventType.CANCELLED.value

    reason: str = Field(description="as it was given; may be empty", examples=["no longer wanted"])


class JobCancelIgnored(_EngineEvent):
    """The attempt still runs `grace_s` seconds after it was cancelled."""

    event_type = EventType.CANCEL_IGNORED.value

    reason: str = Field(description="why it was cancelled; may be empty", examples=["no longer wanted"])
    grace_s: float = Field(ge=0, description="seconds it had to end", examples=[10])


class LoopBlocked(EventModel):
    """The event loop was blocked: nothing else could run meanwhile."""

    event_type = "loop.blocked"
    event_publisher = Publisher.WATCHDOG
    event_storage = Storage.OF_JOBS

    task: str = Field(description="the task whose job blocked it, or the coroutine", examples=["resize"])
    line: str = Field(description="where: file, line and function", examples=["shop/images.py:12 in resize"])
    seconds: float = Field(ge=0, description="how long", examples=[1.204])


class StreamReset(EventModel):
    """The cursor cannot be resumed from, so events may be missing; the stream continues from the frame's `id`."""

    event_type = "stream.reset"
    event_publisher = Publisher.STREAM
    event_storage = Storage.NONE

    reason: str = Field(
        description="`malformed`, `foreign` (of another database) or `unreachable` (the log was purged that far, or is "
        "not there yet)",
        examples=["unreachable"],
    )
    jobs: list[JobStanding] = Field(
        description="the jobs in view in their current state, the newest hundred at most",
        examples=[[example_of(JobStanding)]],
    )
    complete: bool = Field(description="whether these are all jobs in view", examples=[True])


class StreamPosition(EventModel):
    """The position of the stream, in the frame's `id`, where no event has carried it."""

    event_type = "stream.position"
    event_publisher = Publisher.STREAM
    event_storage = Storage.NONE

    reason: str = Field(
        description="`start`, a second after a stream without a cursor was opened, or `idle`, where the log grew by "
        "events of others",
        examples=["start"],
    )


class StreamBye(EventModel):
    """The stream ends, not its subject; reconnect after `retry_ms`, which is also the frame's `retry`."""

    event_type = "stream.bye"
    event_publisher = Publisher.STREAM
    event_storage = Storage.NONE

    reason: str = Field(description="why the stream ends: `shutdown`, `age` or `revoked`", examples=["shutdown"])
    retry_ms: int = Field(ge=0, description="milliseconds, different for each stream", examples=[2731])


ENGINE_EVENTS: tuple[type[EventModel], ...] = (
    JobWaiting,
    JobScheduled,
    JobQueued,
    JobStarted,
    JobProgress,
    JobRetrying,
    JobSucceeded,
    JobFailed,
    JobCancelled,
    JobCancelIgnored,
    LoopBlocked,
    StreamReset,
    StreamPosition,
    StreamBye,
)
"""All of them. The first ten are those of :class:`~asyncbg.core.event.EventType`, in its order."""
