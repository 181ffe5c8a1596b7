"""The engine: registers tasks, enqueues jobs, runs them and publishes their events. Independent of the web."""

from asyncbg.engine.engine import Engine
from asyncbg.engine.enqueuer import Enqueuer, PreparedJob
from asyncbg.engine.job_handle import Job
from asyncbg.engine.options import CallOptions
from asyncbg.engine.task_handle import Task, TaskCall

__all__ = ["CallOptions", "Engine", "Enqueuer", "Job", "PreparedJob", "Task", "TaskCall"]
