"""Durable background tasks for FastAPI: stored before the response, visible, cancellable, retried and streamed."""

from asyncbg.core.event import Event, EventType
from asyncbg.core.event_model import EventModel
from asyncbg.core.job import JobState
from asyncbg.engine import Job, Task
from asyncbg.engine.context import current_job
from asyncbg.engine.dependencies import Depends
from asyncbg.engine.progress import Progress
from asyncbg.errors import AsyncBGError, FinalError
from asyncbg.fastapi import AsyncBG, BackgroundTasks, JobBackgroundTasks, RequestBackgroundTasks
from asyncbg.privacy import Personal
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
