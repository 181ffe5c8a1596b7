"""The engine: registers tasks, accepts jobs, runs them, tells what happened. Knows nothing of the web."""

from asyncbg.engine.engine import Engine
from asyncbg.engine.enqueuer import Enqueuer, PreparedJob
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import CallOptions
from asyncbg.engine.task_handle import Task, TaskCall

__all__ = ["CallOptions", "Engine", "Enqueuer", "Job", "PreparedJob", "Task", "TaskCall"]
