"""Conformance kit for SSE endpoints: what an EventSource, a proxy and a resuming client require."""

from contextlib import AsyncExitStack

import aiohttp

from asyncbg.testing.endpoint import CheckFailedError, CheckSkippedError, Endpoint, MakeEvent, in_process, over_http
from asyncbg.testing.report import CheckResult, ConformanceReport, Outcome
from asyncbg.testing.request_checks import REQUEST_CHECKS
from asyncbg.testing.sample import Check, Sample, take_sample
from asyncbg.testing.sample_checks import SAMPLE_CHECKS
from asyncbg.testing.server import started
from asyncbg.testing.stream import ASGIApp

CHECKS = (*SAMPLE_CHECKS, *REQUEST_CHECKS)


async def sse_conformance(
    target: ASGIApp | str,
    path: str = "/events",
    *,
    make_event: MakeEvent | None = None,
    ended: str | None = None,
    heartbeat_s: float | None = None,
    headers: dict[str, str] | None = None,
    lifespan: bool = True,
    timeout_s: float = 5.0,
) -> ConformanceReport:
    """Check the event stream at ``path`` of an ASGI application, or of the server at a base URL.

    ``make_event`` is called, and awaited if it returns an awaitable, to create at least one event that appears on the
    stream with an id; without it, the checks that need events are skipped. ``ended`` is the path of a stream that ends,
    for the checks of its end; ``heartbeat_s`` is the interval of comments on an idle stream; ``headers`` are sent with
    every request, for authentication. ``timeout_s`` limits every wait. The lifespan of an application is run around the
    checks unless ``lifespan`` is False.

    A failed check does not raise; ``report.raise_for_failures()`` does. Errors of ``make_event`` propagate. Raises
    AppFailedError if the application does not start, aiohttp's ClientError if the server does not respond.
    """
    if not path.startswith("/") or (ended is not None and not ended.startswith("/")):
        raise ValueError("a path must begin with a slash: path='/events'")
    async with AsyncExitStack() as stack:
        if isinstance(target, str):
            if not target.startswith(("http://", "https://")):
                raise ValueError(f"{target!r} is not a base URL: it must begin with http:// or https://")
            session = await stack.enter_async_context(_session())
            opener, name = over_http(session, target, timeout_s), target.rstrip("/") + path
        else:
            if lifespan:
                await stack.enter_async_context(started(target))
            opener, name = in_process(target, timeout_s), f"{type(target).__name__} {path}"
        endpoint = Endpoint(
            opener=opener, path=path, timeout_s=timeout_s, make_event=make_event, ended=ended,
            heartbeat_s=heartbeat_s, headers=headers or {},
        )  # fmt: skip
        sample = await take_sample(endpoint)
        return ConformanceReport(name, [await _run_check(check, endpoint, sample) for check in CHECKS])


async def _run_check(check: Check, endpoint: Endpoint, sample: Sample) -> CheckResult:
    outcome, detail = Outcome.PASSED, ""
    try:
        await check.make(endpoint, sample)
    except CheckSkippedError as reason:
        outcome, detail = Outcome.SKIPPED, str(reason)
    except CheckFailedError as reason:
        outcome, detail = Outcome.FAILED, str(reason)
    except TimeoutError:
        outcome, detail = Outcome.FAILED, f"no response within {endpoint.timeout_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        outcome, detail = Outcome.FAILED, f"the connection broke: {type(error).__name__}"
    return CheckResult(name=check.name, title=check.title, reference=check.reference, outcome=outcome, detail=detail)


def _session() -> aiohttp.ClientSession:
    """Return a session without connection limit, timeout and decompression: the checks need the raw bytes."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(), auto_decompress=False, trust_env=False
    )
