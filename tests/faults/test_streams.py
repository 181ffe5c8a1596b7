"""Streams under attack, in short: cut clients, a killed server, a stop; the long forms are in docs/streams.md."""

import pytest

from tests.faults.test_kill_loop import run_module
from tests.faults.verdict import figures_of


async def test_cut_clients_of_a_killed_server_see_the_log_exactly() -> None:
    """Each client, cut at random bytes, gets every stored event once and in order, whatever becomes of the server."""
    storm = ("--clients", "5", "--events", "300", "--disconnects", "3", "--kills", "1")
    figures, broken = figures_of(await run_module("tests.faults.stream_loop", *storm))

    assert broken == []
    assert (figures["exact"], figures["cuts"], figures["kills"]) == (5, 15, 1)
    assert figures["events"] >= 300
    assert (figures["lost"], figures["repeated"], figures["reordered"], figures["invented"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_every_open_stream_hears_the_goodbye(workers: str) -> None:
    """At SIGTERM each stream gets one whole stream.bye and the end of its body; then the process ends by itself."""
    figures, broken = figures_of(await run_module("tests.faults.stream_stop", "--streams", "20", "--workers", workers))

    assert broken == []
    assert figures["goodbyes"] == 20
