"""The client of the service: submit jobs, wait for them, follow their events across network failures."""

from asyncbg.client.client import Client
from asyncbg.client.error import ApiError, ClientError, StreamError, UnreachableError
from asyncbg.client.remote import AcceptedJob, JobPage, RemoteAttempt, RemoteEvent, RemoteJob

__all__ = [
    "AcceptedJob",
    "ApiError",
    "Client",
    "ClientError",
    "JobPage",
    "RemoteAttempt",
    "RemoteEvent",
    "RemoteJob",
    "StreamError",
    "UnreachableError",
]
