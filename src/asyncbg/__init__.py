"""FastAPI's BackgroundTasks, kept: on disk before the response leaves, visible, cancellable, retried, streamed."""

from asyncbg.background import Job, Task
from asyncbg.context import Progress, current_job
from asyncbg.dependencies import Depends
from asyncbg.errors import AsyncBGError, FinalError
from asyncbg.event import Event, EventType
from asyncbg.event_model import EventModel
from asyncbg.fastapi import AsyncBG, BackgroundTasks, JobBackgroundTasks, RequestBackgroundTasks
from asyncbg.job import JobState
from asyncbg.redact import Personal
from asyncbg.settings import Settings

__all__ = [
    "AsyncBG",
    "AsyncBGError",
    "BackgroundTasks",
    "Depends",
    "Event",
    "EventModel",
    "EventType",
    "FinalError",
    "Job",
    "JobBackgroundTasks",
    "JobState",
    "Personal",
    "Progress",
    "RequestBackgroundTasks",
    "Settings",
    "Task",
    "current_job",
]
