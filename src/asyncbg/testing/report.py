"""What a conformance run found: one verdict a check, with the reason and where it is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check: its name, what it asks for, where that is written, how it ended, and why if it did not pass."""

    name: str
    title: str
    reference: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        """One line, and a second one with the reason."""
        line = f"{self.outcome:<8}{self.name:<18}{self.title}"
        return f"{line}\n        {self.detail} ({self.reference})" if self.detail else line


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """All checks of one endpoint; ``print(report)`` shows them, ``report["resume"]`` is one of them."""

    endpoint: str
    results: Sequence[CheckResult]

    def __getitem__(self, name: str) -> CheckResult:
        """A check by its name. Raises KeyError, which names those there are."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(f"no check {name!r}; there are {', '.join(result.name for result in self.results)}")

    @property
    def passed(self) -> list[CheckResult]:
        """Those that passed."""
        return [result for result in self.results if result.outcome is Outcome.PASSED]

    @property
    def failed(self) -> list[CheckResult]:
        """Those that failed."""
        return [result for result in self.results if result.outcome is Outcome.FAILED]

    @property
    def skipped(self) -> list[CheckResult]:
        """Those that could not be made, or that ask for what the endpoint does not offer."""
        return [result for result in self.results if result.outcome is Outcome.SKIPPED]

    def raise_for_failures(self) -> None:
        """Raise ConformanceError where a check failed."""
        if self.failed:
            raise ConformanceError(self)

    def __str__(self) -> str:
        """A line for each check, and the sum."""
        counted = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return "\n".join([self.endpoint, *map(str, self.results), counted])


class ConformanceError(AssertionError):
    """An endpoint failed checks; ``report`` has all of them."""

    def __init__(self, report: ConformanceReport) -> None:
        """List the failures."""
        failures = "\n".join(f"  {result.name}: {result.detail} ({result.reference})" for result in report.failed)
        super().__init__(f"{report.endpoint} fails {len(report.failed)} of {len(report.results)} checks:\n{failures}")
        self.report = report
