"""Where a process runs tests: its engine never opens the database that the developer works with."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

_log = logging.getLogger("asyncbg")
_OF_PYTEST: Final = ("PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_WORKER")


def is_test_process() -> bool:
    """Whether this process runs tests: under pytest, or as ``python -m unittest``.

    That pytest or unittest is loaded says nothing, since libraries load them too, and a server that took itself for a
    test would lose its jobs. pytest says so in the environment, and what it starts is no test process.
    """
    under_pytest = "_pytest.main" in sys.modules and any(name in os.environ for name in _OF_PYTEST)
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return under_pytest or (spec is not None and spec.name in {"unittest", "unittest.__main__"})


@cache
def private_folder() -> Path:
    """A new folder for the database and the files of this process, removed when it ends. The log says so once."""
    folder, pid = Path(tempfile.mkdtemp(prefix="asyncbg-test-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == pid else None)
    _log.warning(
        "this process runs tests and ASYNCBG_DATABASE_URL is not set: asyncbg uses a temporary database in %s, and not "
        "the one of the project; set it, or pass AsyncBG(database_url=...), to choose another",
        folder,
    )
    return folder
