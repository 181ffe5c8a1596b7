"""Makes a run of pytest fail when personal data came out of any of its processes, and lists where."""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from .recorder import DIRECTORY, counts_in, leaks_in
from .taps import install, with_hook


def watch(config: pytest.Config) -> None:
    """Tap this process and all that it starts; the one that started the run (not a worker of xdist) tells the end."""
    if not hasattr(config, "workerinput"):
        directory = Path(tempfile.mkdtemp(prefix="canary-"))
        directory.chmod(0o1777)  # a test's process may be another user's
        os.environ |= {**with_hook(os.environ, directory), DIRECTORY: str(directory)}
        config.pluginmanager.register(_End(directory))
    install(Path(os.environ[DIRECTORY]), streams=False)


class _End:
    """The end of a run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if leaks_in(self._directory) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        leaks = leaks_in(self._directory)
        terminalreporter.section("personal data came out" if leaks else "canary", red=bool(leaks))
        for leak in leaks:
            terminalreporter.line(str(leak))
        terminalreporter.line(f"{len(leaks)} leaks in {self._watched()}")

    def _watched(self) -> str:
        processes, records, sizes = 0, Counter[str](), Counter[str]()
        for counts in counts_in(self._directory):
            processes += 1
            for kind, (number, size) in counts.items():
                records[kind] += number
                sizes[kind] += size
        told = ", ".join(f"{kind} {records[kind]:,} ({sizes[kind]:,} bytes)" for kind in records)
        return f"what {processes} processes let out: {told}"

    def pytest_unconfigure(self) -> None:
        shutil.rmtree(self._directory)
        del os.environ[DIRECTORY]
