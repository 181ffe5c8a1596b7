"""What every test shares: a clean environment, a watch on what comes out, and no skipping where the gate runs."""

import os
from collections.abc import Iterator

import pytest

from tests.canary import plugin as canary


def pytest_configure(config: pytest.Config) -> None:
    """Nothing personal comes out of any process of the suite."""
    canary.watch(config)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the ASYNCBG_* variables of whoever runs the suite."""
    for name in list(os.environ):
        if name.upper().startswith("ASYNCBG_"):
            monkeypatch.delenv(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None] | pytest.TestReport:  # a hook wrapper: yields, then returns the report
    """In the gate (CI=true) a skipped test is a failed one: there, everything is installed."""
    report: pytest.TestReport = yield  # type: ignore[assignment,misc]  # pytest sends the report in
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
