"""The engine: registers tasks, accepts jobs, runs them, tells what happened. Knows nothing of the web."""

from asyncbg.background.call_options import CallOptions
from asyncbg.background.engine import Engine
from asyncbg.background.enqueuer import Enqueuer, Prepared
from asyncbg.background.job_handle import Job
from asyncbg.background.task_handle import Task, TaskCall

__all__ = ["CallOptions", "Engine", "Enqueuer", "Job", "Prepared", "Task", "TaskCall"]
