"""The bus tells everybody what they want, in order, bounded, and nobody can hold it up."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncbg.bus import EventBus
from asyncbg.core.event import Event, EventFilter

ALL = EventFilter()


def stored(seq: int, kind: str = "job.queued", *, job: str = "j1", task: str = "t", batch: str = "b") -> Event:
    """A stored event."""
    return Event(seq, kind, 1_800_000_000_000, job, task, batch, "anonymous", 1)


def progress(value: int, *, job: str = "j1") -> Event:
    """A progress event."""
    return Event(0, "job.progress", 1_800_000_000_000, job, "t", "b", "anonymous", 1, f'{{"current":{value}}}')


@asynccontextmanager
async def handling(bus: EventBus) -> AsyncIterator[None]:
    """Run the bus's handlers."""
    task = asyncio.create_task(bus.run_handlers())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_subscription_takes_what_was_published_in_order() -> None:
    """All stored events come once and in the order of publishing."""
    bus = EventBus()
    with bus.subscribe(ALL) as subscription:
        bus.publish([stored(1), stored(2)])
        bus.publish([stored(3)])

        assert [event.seq for event in subscription.take()] == [1, 2, 3]
        assert subscription.take() == []


@pytest.mark.parametrize(
    ("wanted", "seqs"),
    [
        (ALL, [1, 2, 3]),
        (EventFilter(jobs=frozenset({"a", "c"})), [1, 3]),
        (EventFilter(tasks=frozenset({"mail"})), [1, 2]),
        (EventFilter(batches=frozenset({"y"})), [2, 3]),
        (EventFilter(types=frozenset({"job.*"})), [1, 3]),
        (EventFilter(jobs=frozenset({"a", "b"}), tasks=frozenset({"mail"}), types=frozenset({"mail.sent"})), [2]),
        (EventFilter(owner="anonymous"), [1, 2, 3]),
        (EventFilter(owner="somebody"), []),
    ],
)
async def test_a_filter_takes_what_it_names(wanted: EventFilter, seqs: list[int]) -> None:
    """Every dimension of a filter narrows, and the index by job, batch and task changes nothing in that."""
    bus = EventBus()
    with bus.subscribe(wanted) as subscription:
        bus.publish(
            [
                stored(1, job="a", task="mail", batch="x"),
                stored(2, "mail.sent", job="b", task="mail", batch="y"),
                stored(3, job="c", task="csv", batch="y"),
            ]
        )

        assert [event.seq for event in subscription.take()] == seqs


async def test_an_event_is_encoded_once_for_all() -> None:
    """Two subscribers get the very same bytes."""
    bus = EventBus()
    bus.start(epoch="e", last_seq=0)
    with bus.subscribe(ALL) as one, bus.subscribe(EventFilter(jobs=frozenset({"j1"}))) as other:
        bus.publish([stored(1)])

        assert one.take_chunks()[0].wire(bus.epoch) is other.take_chunks()[0].wire(bus.epoch)


async def test_a_full_subscription_lags_and_holds_nothing() -> None:
    """An overflow of stored events drops them all and says so; after a reset it collects again."""
    bus = EventBus(buffer=3)
    with bus.subscribe(ALL) as subscription:
        bus.publish([stored(seq) for seq in range(1, 5)])
        bus.publish([stored(5)])
        assert subscription.lagging
        assert subscription.take() == []

        subscription.reset()
        bus.publish([stored(6)])

        assert not subscription.lagging
        assert [event.seq for event in subscription.take()] == [6]
        assert bus.statistics().lagged == 1
        assert bus.statistics().dropped == 5


async def test_progress_is_kept_as_its_latest_value() -> None:
    """A thousand reports of two jobs leave two, and stored events keep their place after what was reported before."""
    bus = EventBus(buffer=3)
    with bus.subscribe(ALL) as subscription:
        for value in range(1000):
            bus.publish([progress(value)])
            bus.publish([progress(value, job="j2")])
        bus.publish([stored(1, "job.succeeded")])
        bus.publish([progress(7)])

        taken = [(event.job_id, event.data or event.type) for event in subscription.take()]

        assert taken == [
            ("j1", '{"current":999}'),
            ("j2", '{"current":999}'),
            ("j1", "job.succeeded"),
            ("j1", '{"current":7}'),
        ]


async def test_progress_of_countless_jobs_is_bounded() -> None:
    """The progress of more jobs than the buffer holds is dropped and counted, and nothing stored is."""
    bus = EventBus(buffer=3)
    with bus.subscribe(ALL) as subscription:
        bus.publish([progress(1, job=f"j{n}") for n in range(10)])
        bus.publish([stored(1)])

        assert len(subscription.take()) == 4
        assert bus.statistics().dropped == 7
        assert not subscription.lagging


async def test_wait_returns_when_something_is_there() -> None:
    """A waiting reader is woken by what it wants, and is told when its time is over."""
    bus = EventBus()
    with bus.subscribe(EventFilter(jobs=frozenset({"j1"}))) as subscription:
        bus.publish([stored(1, job="other")])
        assert not await subscription.wait(0)

        waiting = asyncio.create_task(subscription.wait(10))
        await asyncio.sleep(0)
        bus.publish([stored(2)])

        assert await waiting
        assert [event.seq for event in subscription.take()] == [2]


async def test_draining_ends_every_subscription() -> None:
    """Readers take what is left and see the end; so does who subscribes later, until the next start."""
    bus = EventBus()
    bus.start(epoch="e", last_seq=0)
    with bus.subscribe(ALL) as subscription:
        waiting = asyncio.create_task(subscription.wait(10))
        await asyncio.sleep(0)
        bus.drain()

        assert await waiting
        assert subscription.closing
        with bus.subscribe(ALL) as late:
            assert late.closing

    bus.start(epoch="e", last_seq=0)
    with bus.subscribe(ALL) as next_life:
        assert not next_life.closing


async def test_a_closed_subscription_leaves_nothing_behind() -> None:
    """After the last one left, a publish costs what it cost before the first."""
    bus = EventBus()
    filters = [EventFilter(jobs=frozenset({"a", "b"})), EventFilter(batches=frozenset({"x"})), ALL]
    for subscription in [bus.subscribe(wanted) for wanted in filters]:
        subscription.close()
        subscription.close()

    bus.publish([stored(1)])

    assert bus.statistics().subscribers == 0
    assert bus.statistics().delivered == 0
    assert bus.last_seq == 1


async def test_the_final_event_of_a_job_is_waited_for() -> None:
    """Only the job's own final event ends the wait, also when it came between the look and the wait."""
    bus = EventBus()
    with bus.expect_final("j1") as waiting:
        bus.publish([stored(1, "job.started"), stored(2, "job.succeeded", job="j2"), stored(3, "job.failed")])

        final = await waiting.wait(10)

    assert final is not None
    assert final.seq == 3
    with bus.expect_final("j1") as late:
        assert await late.wait(0) is None


async def test_a_handler_is_called_with_what_it_asked_for() -> None:
    """Handlers are registered by type, by prefix and by task; plain functions run in a thread."""
    bus = EventBus()
    seen: dict[str, list[int]] = {"exact": [], "prefix": [], "task": [], "all": []}

    async def exact(event: Event) -> None:
        seen["exact"].append(event.seq)

    def plain(event: Event) -> None:
        seen["prefix"].append(event.seq)

    bus.on("job.failed", exact)
    bus.on("job.*", plain)
    bus.on("job.*", lambda event: seen["task"].append(event.seq), task="mail")
    async with handling(bus):
        bus.on("*", lambda event: seen["all"].append(event.seq))
        bus.publish([stored(1, "job.failed"), stored(2, "job.queued", task="mail"), stored(3, "mail.sent")])
        assert await bus.join_handlers(10)

    assert seen == {"exact": [1], "prefix": [1, 2], "task": [2], "all": [1, 2, 3]}


async def test_a_failing_handler_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler raises is logged under its name, without the event's data, and it gets the next event."""
    bus = EventBus()
    seen: list[int] = []

    async def breaks(event: Event) -> None:
        seen.append(event.seq)
        raise ValueError(event.data)

    bus.on("*", breaks)
    with caplog.at_level(logging.ERROR):
        async with handling(bus):
            bus.publish([stored(1)._replace(data='{"to":"ada.canary7f3a@canary7f3a.example"}'), stored(2)])
            assert await bus.join_handlers(10)

    assert seen == [1, 2]
    assert bus.statistics().handler_errors == 2
    assert "breaks" in caplog.text
    assert "ValueError" in caplog.text
    assert "ada.canary7f3a@canary7f3a.example" not in caplog.text


async def test_a_slow_handler_loses_its_oldest_events() -> None:
    """Its queue is bounded: the newest stay, what is lost is counted, and another handler gets everything."""
    bus = EventBus(buffer=2)
    slow: list[int] = []
    release = asyncio.Event()

    async def hangs(event: Event) -> None:
        await release.wait()
        slow.append(event.seq)

    bus.on("*", hangs)
    async with handling(bus):
        bus.publish([stored(1)])
        await asyncio.sleep(0)
        bus.publish([stored(seq) for seq in range(2, 7)])
        assert not await bus.join_handlers(0.01)
        release.set()
        assert await bus.join_handlers(10)

    assert slow[-2:] == [5, 6]
    assert bus.statistics().dropped == 6 - len(slow)
    assert len(slow) < 6
