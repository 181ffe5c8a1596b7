"""Test support: a manually driven engine, real servers, a stream client, and a conformance kit for SSE endpoints.

Works without pytest; with it, the plugin provides the fixtures ``bg``, ``bg_clock``, ``bg_live``, ``bg_smtp`` and
``bg_web``. See docs/testing.md.
"""

from asyncbg.core.clock import ManualClock
from asyncbg.testing.assertions import assert_enqueued, refute_enqueued
from asyncbg.testing.conformance import sse_conformance
from asyncbg.testing.engine import ManualBG
from asyncbg.testing.frames import Frame
from asyncbg.testing.peers import ReceivedMail, ReceivedRequest, SmtpSink, WebPeer
from asyncbg.testing.report import CheckResult, ConformanceError, ConformanceReport, Outcome
from asyncbg.testing.server import AppFailedError, LiveServer, serve, started
from asyncbg.testing.stream import EventReader, stream

__all__ = [
    "AppFailedError",
    "CheckResult",
    "ConformanceError",
    "ConformanceReport",
    "EventReader",
    "Frame",
    "LiveServer",
    "ManualBG",
    "ManualClock",
    "Outcome",
    "ReceivedMail",
    "ReceivedRequest",
    "SmtpSink",
    "WebPeer",
    "assert_enqueued",
    "refute_enqueued",
    "serve",
    "sse_conformance",
    "started",
    "stream",
]
