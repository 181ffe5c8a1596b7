"""An aiosqlite connection that runs a whole function in its thread: one hop, however many statements it has."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from typing import Any, Self, TypeVar, cast

import aiosqlite

from asyncbg.core.error_log import capture
from asyncbg.errors import NotRunningError

T = TypeVar("T")

_THREAD_END_S = 1.0
_THREAD_CHECK_S = 0.2


class Connection:
    """One connection and its thread."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._aio = connection
        self.pending = 0
        """Functions that run or wait in the thread."""

    @classmethod
    async def open(cls, connection: aiosqlite.Connection, pragmas: Sequence[str]) -> Self:
        """Start a connection and run ``pragmas`` on it. Raises sqlite3.Error."""
        await connection
        opened = cls(connection)
        try:
            for pragma in pragmas:
                await connection.execute_fetchall(pragma)
        except BaseException:
            await opened.close()
            raise
        return opened

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``fn`` in the thread and return its result. Raises what it raises."""
        # aiosqlite's public methods are one hop a statement; this is what they are all made of.
        if not self._aio._running or self._aio._connection is None:
            raise NotRunningError("the database is not open")
        reply = _Reply()
        self._aio._tx.put_nowait((cast(Any, reply), partial(capture, fn, self._aio._connection)))
        self.pending += 1
        try:
            value, error = await reply.future
        finally:
            self.pending -= 1
        if error is None:
            return cast(T, value)
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise error
        raise RuntimeError(f"{type(error).__name__} was raised in the database's thread") from error

    async def close(self) -> None:
        """Close the connection and end its thread."""
        thread = cast(Thread, getattr(self._aio, "_thread", self._aio))  # in aiosqlite 0.21 it is the thread itself
        closing = asyncio.ensure_future(self._aio.close())
        while thread.is_alive() and not closing.done():
            await asyncio.wait([closing], timeout=_THREAD_CHECK_S)
        if not closing.done():  # the thread is about to end, or its event loop was closed
            await asyncio.wait([closing], timeout=_THREAD_CHECK_S)
        if closing.done():
            thread.join(_THREAD_END_S)
            closing.result()
        else:
            closing.cancel()
            self._aio._connection = None


class _Reply:
    """The reply of the database's thread: a future, except that a closed event loop does not end the thread."""

    __slots__ = ("_loop", "future")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def get_loop(self) -> Self:
        return self

    def call_soon_threadsafe(self, settle: Callable[[Any, Any], None], _: Self, value: Any) -> None:
        """Set the result; called by aiosqlite in the thread."""
        try:
            self._loop.call_soon_threadsafe(settle, self.future, value)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
