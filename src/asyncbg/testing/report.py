"""The report of a conformance run: one result per check, with reason and reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check: name, requirement, reference, outcome, and the reason unless it passed."""

    name: str
    title: str
    reference: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        """Return one line, and a second one with the reason."""
        line = f"{self.outcome:<8}{self.name:<18}{self.title}"
        return f"{line}\n        {self.detail} ({self.reference})" if self.detail else line


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """The results of all checks of one endpoint; ``print(report)`` shows them, ``report["resume"]`` is one of them."""

    endpoint: str
    results: Sequence[CheckResult]

    def __getitem__(self, name: str) -> CheckResult:
        """Return the result of a check by name. Raises KeyError, which lists the names."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no check {name!r}; there are {', '.join(result.name for result in self.results)}")

    @property
    def passed(self) -> list[CheckResult]:
        """Return the passed checks."""
        return [result for result in self.results if result.outcome is Outcome.PASSED]

    @property
    def failed(self) -> list[CheckResult]:
        """Return the failed checks."""
        return [result for result in self.results if result.outcome is Outcome.FAILED]

    @property
    def skipped(self) -> list[CheckResult]:
        """Return the checks that did not apply."""
        return [result for result in self.results if result.outcome is Outcome.SKIPPED]

    def raise_for_failures(self) -> None:
        """Raise ConformanceError if a check failed."""
        if self.failed:
            raise ConformanceError(self)

    def __str__(self) -> str:
        """Return a line for each check, and the totals."""
        counted = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return "\n".join([self.endpoint, *map(str, self.results), counted])


class ConformanceError(AssertionError):
    """An endpoint failed checks; ``report`` has all of them."""

    def __init__(self, report: ConformanceReport) -> None:
        failures = "\n".join(f"  {result.name}: {result.detail} ({result.reference})" for result in report.failed)
        super().__init__(f"{report.endpoint} fails {len(report.failed)} of {len(report.results)} checks:\n{failures}")
        self.report = report
