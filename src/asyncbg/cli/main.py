"""The command ``asyncbg``. Exit codes: 0 done, 1 failed, 2 usage, 3 the job failed, 4 not found, 124 timed out."""

import asyncio
import errno
import gc
import json
import logging.config
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from asyncbg.auth.keys import Keys
from asyncbg.cli.jobs import enqueue, events_app, jobs_app
from asyncbg.cli.keys import audit, keys_app
from asyncbg.cli.maintenance import backup, doctor, forget, purge, rekey
from asyncbg.cli.terminal import AsJson, ExitCode, Profile, UsageError, print_json, print_note, print_table
from asyncbg.core.clock import SystemClock
from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    JobTimeoutError,
    KeyNameError,
    KeyNotFoundError,
    SettingsError,
    UnknownTaskError,
)
from asyncbg.ops.open_store import open_store
from asyncbg.privacy import redact
from asyncbg.service import version
from asyncbg.service.logging_config import logging_config
from asyncbg.settings import Settings, SettingSource, load_settings, setting_sources
from asyncbg.signals import end_children_at_second_signal

__all__ = ["ExitCode", "app", "main", "run"]

_CODES: Mapping[type[AsyncBGError], ExitCode] = {
    SettingsError: ExitCode.USAGE,
    UsageError: ExitCode.USAGE,
    ArgumentsError: ExitCode.USAGE,
    JobNotFoundError: ExitCode.NOT_FOUND,
    UnknownTaskError: ExitCode.NOT_FOUND,
    KeyNotFoundError: ExitCode.NOT_FOUND,
    KeyNameError: ExitCode.USAGE,
    JobFailedError: ExitCode.JOB_FAILED,
    JobCancelledError: ExitCode.JOB_FAILED,
    JobTimeoutError: ExitCode.TIMED_OUT,
}


_QUOTING = (CycloptsError, JobNotFoundError, UnknownTaskError)
"""Errors whose messages quote user input and are redacted; the others contain only fixed text."""


app = App(name="asyncbg", version=version, help="Durable, visible and streamed background tasks for FastAPI.")
settings_app = App(name="settings", help="Show settings and their sources.")
for _part in (
    jobs_app, enqueue, events_app, settings_app, keys_app, audit, doctor, purge, forget, rekey, backup,
):  # fmt: skip
    app.command(_part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return the exit code; an expected error is one line on stderr, without a traceback."""
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _print_error(error, ExitCode.USAGE, hint=" (see asyncbg --help)")
    except AsyncBGError as error:
        return _print_error(error, _CODES.get(type(error), ExitCode.FAILED))
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return result if isinstance(result, int) else ExitCode.DONE


@app.command
def serve(
    *,
    host: Annotated[str | None, Parameter(help="Address to listen on; same as ASYNCBG_SERVER__HOST.")] = None,
    port: Annotated[
        int | None, Parameter(help="Port to listen on, 0 for a free one; same as ASYNCBG_SERVER__PORT.")
    ] = None,
    workers: Annotated[int, Parameter(help="Number of processes that share the port and the database.")] = 1,
    reload: Annotated[bool, Parameter(help="Restart when the code changes; for development.", negative="")] = False,
    profile: Profile = None,
) -> int:
    """Serve the HTTP API, run the jobs and stream their events."""
    if workers < 1 or (reload and workers > 1):
        raise SettingsError("--workers must be at least 1, and exactly 1 with --reload")
    settings = load_settings(**_overrides(profile, host=host, port=port))
    asyncio.run(_require_authentication(settings))
    _require_free_port(settings.server.host, settings.server.port)
    _export_options(host=host, port=port, profile=profile)
    return _serve(settings, workers, reload)


@app.command
def worker(*, profile: Profile = None) -> int:
    """Run jobs without serving HTTP, until SIGTERM or Ctrl-C."""
    from asyncbg.service.server import run_worker

    settings = load_settings(**_overrides(profile))
    logging.config.dictConfig(logging_config(settings))
    asyncio.run(run_worker(settings))
    return _exit_process(ExitCode.DONE)


@app.command
def demo(
    *,
    once: Annotated[bool, Parameter(help="Exit when all jobs are final; 0 if all succeeded.", negative="")] = False,
    port: Annotated[int, Parameter(help="Port of the dashboard, 0 for a free one.")] = 0,
) -> int:
    """Run every workflow once against local servers and show the progress; needs no setup."""
    from asyncbg.cli.demo import run_demo

    return asyncio.run(run_demo(once=once, port=port))


@settings_app.command
def show(
    *,
    sources: Annotated[bool, Parameter(help="Also show the source of each value.", negative="")] = False,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Show all settings; secrets are hidden."""
    shown = setting_sources(**_overrides(profile))
    if as_json:
        print_json(_as_tree(shown, sources=sources))
    else:
        _print_table(shown, sources=sources)


def _overrides(profile: str | None, **server: object) -> dict[str, Any]:
    """Return the settings given on the command line, nested by section."""
    given = {name: value for name, value in server.items() if value is not None}
    return ({"server": given} if given else {}) | ({"profile": profile} if profile is not None else {})


def _require_free_port(host: str, port: int) -> None:
    """Raise ListenError if the port is in use, before anything is started."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ListenError(
                f"port {port} on {host} is in use; stop the other process or choose another with --port"
            ) from None
        reason = (error.strerror or "the address is not available").lower()
        raise ListenError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from None


class ListenError(AsyncBGError):
    """The address to listen on is in use or not available."""


async def _require_authentication(settings: Settings) -> None:
    """Raise SettingsError for an unauthenticated public address, before anything is started."""
    from asyncbg.auth.origin import is_loopback
    from asyncbg.service.server import require_authentication

    if not is_loopback(settings.server.host) and not settings.auth.allow_anonymous:
        async with open_store(settings) as store:
            await require_authentication(settings, Keys(store.database, settings.auth, clock=SystemClock()))


def _export_options(*, host: str | None, port: int | None, profile: str | None) -> None:
    """Export the command line options to the environment, from which uvicorn's factory loads the settings."""
    given = {"ASYNCBG_SERVER__HOST": host, "ASYNCBG_SERVER__PORT": port, "ASYNCBG_PROFILE": profile}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})


def _serve(settings: Settings, workers: int, reload: bool) -> int:
    """Run uvicorn until it is stopped."""
    import uvicorn

    import asyncbg.service.server  # noqa: F401 - loaded before the line below
    from asyncbg.service.connection_limits import connection_limits

    gc.freeze()  # modules are never freed; scanning them would block the loop for 50 ms each time
    if workers > 1 or reload:
        end_children_at_second_signal()
    try:
        uvicorn.run(
            "asyncbg.service.server:create_app",
            factory=True,
            host=settings.server.host,
            port=settings.server.port,
            workers=workers,
            reload=reload,
            access_log=True,
            log_config=logging_config(settings),
            **connection_limits(settings.stream),
            timeout_graceful_shutdown=max(1, math.ceil(settings.runner.shutdown_grace_s)),
        )
    except SystemExit as stop:  # uvicorn's code for a failed start is 3, which here means a failed job
        return ExitCode.FAILED if stop.code else ExitCode.DONE
    return _exit_process(ExitCode.DONE)


def _exit_process(code: ExitCode) -> ExitCode:
    """Exit without waiting for threads that ignored cancellation; their jobs have been released."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def _as_tree(shown: Sequence[SettingSource], *, sources: bool) -> dict[str, Any]:
    """Return the settings as nested objects; with ``sources``, each is an object of value, variable and source."""
    tree: dict[str, Any] = {}
    for setting in shown:
        *sections, name = setting.name.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        value = {"value": setting.value, "variable": setting.variable, "source": setting.origin}
        table[name] = value if sources else setting.value
    return tree


def _print_table(shown: Sequence[SettingSource], *, sources: bool) -> None:
    """Print one line for each setting; values are JSON, to distinguish text from numbers."""
    print_table(
        ("setting", "value", *(["source"] if sources else [])),
        (
            (setting.variable, json.dumps(setting.value, ensure_ascii=False), *([setting.origin] if sources else []))
            for setting in shown
        ),
    )


def _print_error(error: Exception, code: ExitCode, *, hint: str = "") -> ExitCode:
    """Print the error as one line on stderr. Return the exit code."""
    line = " ".join(str(error).split()) or type(error).__name__
    line = redact(line) if isinstance(error, _QUOTING) else line
    print_note(f"{line}{hint}")
    return code
