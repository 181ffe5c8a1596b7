"""Where output leaves a process: each tap shows it to the recorder, and passes it on as it is.

Only the standard library is imported. The rest is tapped when the process itself has imported it.
"""

import contextlib
import functools
import importlib.util
import io
import os
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from .recorder import DIRECTORY, Recorder
from .search import Search

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

HOOK = str(Path(__file__).with_name("hook"))
_INSTALLED = "canary_recorder"


def install(directory: Path, *, streams: bool) -> None:
    """Tap this process, once; ``streams`` are its own standard output and error, which pytest taps by its capture."""
    if hasattr(sys, _INSTALLED):
        return
    recorder = Recorder(directory)
    setattr(sys, _INSTALLED, recorder)
    if streams:
        sys.stdout, sys.stderr = _tapped(sys.stdout, recorder), _tapped(sys.stderr, recorder)
    _tap_redirects(recorder)
    _tap_children(directory)
    taps = {
        "logging": _tap_logging,
        "_pytest.capture": _tap_capture,
        "starlette.applications": _tap_applications,
        "opentelemetry.sdk.trace": _tap_spans,
    }
    waiting: dict[str, Callable[[ModuleType], None]] = {}
    for name, tap in taps.items():
        if name in sys.modules:
            tap(sys.modules[name], recorder)
        else:
            waiting[name] = functools.partial(tap, recorder=recorder)
    sys.meta_path.insert(0, _AfterImport(waiting))


class _AfterImport(MetaPathFinder):
    """Taps modules when they are imported."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self._waiting = waiting

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        tap = self._waiting.pop(name, None)
        spec = importlib.util.find_spec(name) if tap is not None else None
        if tap is not None and spec is not None and spec.loader is not None:
            _call_after(spec.loader, tap)
        return spec


def _call_after(loader: Loader, tap: Callable[[ModuleType], None]) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        tap(module)

    vars(loader)["exec_module"] = exec_module


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put what ``make`` makes of a method in its place."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


# Standard output and error


class _TappedFile(io.FileIO):
    """A descriptor; what was written to it is seen."""

    def __init__(self, descriptor: int, name: str, recorder: Recorder) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.name = name
        self._where = f"{name} of {' '.join(sys.orig_argv[1:])[:200]}"
        self._recorder = recorder
        self._search = Search()

    def write(self, data: Any) -> int:
        written = super().write(data)
        self._recorder.see("output", self._where, bytes(data[: written or 0]), self._search)
        return written


def _tapped(stream: Any, recorder: Recorder) -> Any:
    """A stream like ``stream``, over a descriptor that is watched."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = _TappedFile(stream.fileno(), stream.name, recorder)
    buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def _tap_capture(module: ModuleType, recorder: Recorder) -> None:
    """What pytest captures of its own process."""
    searches = WeakKeyDictionary[Any, Search]()

    def make(write: Callable[[Any, str], int]) -> Callable[[Any, str], int]:
        def watched(file: Any, text: str) -> int:
            search = searches.setdefault(file, Search())
            recorder.see("output", "captured", text.encode("utf-8", "replace"), search)
            return write(file, text)

        return watched

    _replace(module.EncodedFile, "write", make)
    _replace(module.CaptureIO, "write", make)


def _tap_redirects(recorder: Recorder) -> None:
    """What ``contextlib.redirect_stdout`` and its sister have put into a string."""

    def make(leave: Callable[..., None]) -> Callable[..., None]:
        def watched(redirect: Any, *error: Any) -> None:
            target = redirect._new_target
            if isinstance(target, io.StringIO):
                recorder.see("output", "redirected", target.getvalue().encode("utf-8", "replace"))
            leave(redirect, *error)

        return watched

    _replace(contextlib._RedirectStream, "__exit__", make)


def _tap_children(directory: Path) -> None:
    """A child process is tapped, too, whatever environment it is given."""

    def make(start: Callable[..., None]) -> Callable[..., None]:
        def watched(process: Any, *args: Any, env: Mapping[Any, Any] | None = None, **kwargs: Any) -> None:
            start(process, *args, env=with_hook(os.environ if env is None else env, directory), **kwargs)

        return watched

    _replace(subprocess.Popen, "__init__", make)


def with_hook(environment: Mapping[Any, Any], directory: Path) -> dict[Any, Any]:
    """An environment in which Python starts with the taps."""
    path = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one and one != HOOK]
    told = {name: os.environ[name] for name in ("PYTEST_CURRENT_TEST", DIRECTORY) if name in os.environ}
    return {DIRECTORY: str(directory), **told, **environment, "PYTHONPATH": os.pathsep.join([HOOK, *path])}


# Log records, as a handler writes them: after its filters


def _tap_logging(module: ModuleType, recorder: Recorder) -> None:
    def make(write: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
        def watched(handler: Any, record: Any) -> str:
            text = write(handler, record)
            where = f"{record.name} by {type(handler).__module__}.{type(handler).__qualname__}"
            recorder.see("log", where, str(text).encode("utf-8", "replace"))
            return text

        return watched

    _replace(module.Handler, "format", make)


# Answers: headers, bodies, streams, pages


class _Answer:
    """One answer of an ASGI application, as it goes out."""

    def __init__(self, scope: Message, recorder: Recorder) -> None:
        self._recorder = recorder
        self._search = Search()
        self._decode: Callable[[bytes], bytes] = bytes
        self._where = f"{scope['method']} {scope['path']}"

    def see(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._see_headers(list(message.get("headers", ())))
        elif message["type"] == "http.response.body":
            body = self._decode(message.get("body", b""))
            self._recorder.see("body", self._where, body, self._search)

    def _see_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        if any(name.lower() == b"content-encoding" and value == b"gzip" for name, value in headers):
            self._decode = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
        self._recorder.see("header", self._where, b"\n".join(b": ".join(header) for header in headers))


def _tap_applications(module: ModuleType, recorder: Recorder) -> None:
    def make(call: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def watched(application: Any, scope: Message, receive: Any, send: Send) -> None:
            is_within = scope.get("app", application) is not application  # another one, which is tapped
            if scope["type"] != "http" or is_within:
                await call(application, scope, receive, send)
                return
            answer = _Answer(scope, recorder)

            async def send_on(message: Message) -> None:
                answer.see(message)
                await send(message)

            await call(application, scope, receive, send_on)

        return watched

    _replace(module.Starlette, "__call__", make)


# Spans


def _tap_spans(module: ModuleType, recorder: Recorder) -> None:
    def make(end: Callable[..., None]) -> Callable[..., None]:
        def watched(span: Any, *args: Any, **kwargs: Any) -> None:
            end(span, *args, **kwargs)
            recorder.see("span", span.name, span.to_json(indent=None).encode("utf-8", "replace"))

        return watched

    _replace(module.Span, "end", make)
