"""A few hundred cases made from the OpenAPI document; ``python -m tests.api.fuzz`` sends ten thousand."""

import pytest
from tests.api.fuzz import a_key, fuzz, service


@pytest.mark.timeout(300)
def test_no_case_finds_a_fault() -> None:
    """No 5xx, no status or body the document does not tell of; an error is a problem document and repeats nothing."""
    with service() as (url, headers):
        report = fuzz(url, headers, cases=250, seed=5)

    assert report.faults == []
    assert report.cases > 200
    assert {200, 202, 404, 415, 422} <= set(report.statuses)


@pytest.mark.timeout(300)
def test_no_case_with_a_key_finds_a_fault() -> None:
    """The same where somebody shows a key, at a service that is closed to everybody else."""
    with service(a_key) as (url, headers):
        report = fuzz(url, headers, cases=100, seed=6)

    assert report.faults == []
    assert {200, 202} <= set(report.statuses)
