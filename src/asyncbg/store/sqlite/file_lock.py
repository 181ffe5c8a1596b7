"""An exclusive lock on a file, held by one process and not by its forked children."""

import fcntl
import os
import weakref
from pathlib import Path

_MODE = 0o600
_locks: "weakref.WeakSet[FileLock]" = weakref.WeakSet()
_is_hooked = False


class FileLock:
    """``flock`` (flock(2)) on one file: the kernel releases it when the process ends, for whatever reason.

    A forked child shares its parent's lock through the inherited descriptor, so it could hold the lock of a dead
    parent. Therefore the child closes its copy immediately (which does not unlock), and a release unlocks explicitly
    (which also frees a lock whose file a child still has open).
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is opened before :meth:`open`."""
        self._path = os.fspath(path)
        self.fd: int | None = None
        """The open file, whether it is locked or not; None before :meth:`open` and after :meth:`close`."""

    def open(self, *, create: bool) -> None:
        """Open the file without locking it. Raises OSError; FileNotFoundError alone proves that there is no file."""
        self.fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), _MODE)
        _hook_forks()
        _locks.add(self)

    def try_lock(self) -> bool:
        """Lock the open file unless another process holds the lock. Raises OSError."""
        if self.fd is None:
            return False
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Release the lock and keep the file open."""
        if self.fd is not None:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the lock, if it is held, and close the file."""
        fd, self.fd = self.fd, None
        _locks.discard(self)
        if fd is not None:
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)

    def _drop(self) -> None:
        """Close the inherited descriptor in a forked child; the parent keeps the lock."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


def lock_file(path: str | Path, *, create: bool) -> FileLock | None:
    """Open and lock a file; None where another process holds the lock. Raises OSError."""
    lock = FileLock(path)
    lock.open(create=create)
    try:
        is_ours = lock.try_lock()
    except BaseException:
        lock._drop()
        raise
    if is_ours:
        return lock
    lock._drop()
    return None


def _hook_forks() -> None:
    """Install the fork hook once a process, with the first lock: importing this module has no side effect."""
    global _is_hooked  # noqa: PLW0603 - fork hooks cannot be removed, so there is one for the process
    if not _is_hooked:
        _is_hooked = True
        os.register_at_fork(after_in_child=_drop_all)


def _drop_all() -> None:
    for lock in list(_locks):
        lock._drop()
    _locks.clear()
