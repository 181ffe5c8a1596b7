"""assert_enqueued and refute_enqueued: what counts as found, and what the error tells."""

from datetime import date

import pytest

from asyncbg.errors import ArgumentsError, UnknownTaskError
from asyncbg.testing import ManualBG, assert_enqueued, refute_enqueued


async def remind(name: str, day: date | None = None, loud: bool = False) -> None:
    """A task."""


async def test_a_job_is_found_by_its_task(bg: ManualBG) -> None:
    """By the registered task, by the plain function, or by name."""
    task = bg.task(remind)
    registered = await task.enqueue("Ada")
    plain = await bg.enqueue(remind, "Bob")

    assert (await assert_enqueued(bg, task)).id == registered.id
    assert (await assert_enqueued(bg, "remind")).id == registered.id
    assert (await assert_enqueued(bg, task.options(priority=5))).id == registered.id
    assert (await assert_enqueued(bg, remind)).id == plain.id


async def test_arguments_by_name_may_be_some_and_in_sequence_are_all(bg: ManualBG) -> None:
    """A mapping is part of the job's arguments, a sequence is the whole call; values of Python are meant as such."""
    await bg.enqueue(remind, "Ada", day=date(2027, 1, 15))

    await assert_enqueued(bg, remind, args={"name": "Ada"})
    await assert_enqueued(bg, remind, args={"day": date(2027, 1, 15)})
    await assert_enqueued(bg, remind, args=["Ada", date(2027, 1, 15)])
    await refute_enqueued(bg, remind, args=["Ada"])
    await refute_enqueued(bg, remind, args={"loud": False})


async def test_the_other_traits_of_a_job(bg: ManualBG) -> None:
    """State, tags, owner, priority, delay and count are all looked at."""
    task = bg.task(remind)
    await task.options(delay=60, priority=3, tags=["mail", "daily"], owner="ada").enqueue("Ada")
    await task.enqueue("Bob")

    await assert_enqueued(bg, task, state="scheduled", tags=["mail"], owner="ada", priority=3, delay_s=60, count=1)
    await assert_enqueued(bg, task, count=2)
    await refute_enqueued(bg, task, state="running")
    await refute_enqueued(bg, task, tags=["weekly"])
    for wrong in ({"delay_s": 61}, {"priority": 4}, {"owner": "bob"}, {"count": 3}):
        with pytest.raises(AssertionError, match="expected"):
            await assert_enqueued(bg, task, **wrong)


async def test_the_error_lists_what_there_is(bg: ManualBG) -> None:
    """The wanted job in the words of the call, then the jobs there are, newest first, or that there is none."""
    with pytest.raises(AssertionError, match="no job was enqueued"):
        await assert_enqueued(bg, "remind")
    await bg.enqueue(remind, "Ada")
    await bg.enqueue(remind, "Bob")

    with pytest.raises(AssertionError) as raised:
        await assert_enqueued(bg, "remind", args={"name": "Eve"}, state="queued")

    assert "at least one job of remind(args={'name': 'Eve'}, state=<JobState.QUEUED" in str(raised.value)
    assert str(raised.value).index("Bob") < str(raised.value).index("Ada")
    with pytest.raises(AssertionError, match="expected no job"):
        await refute_enqueued(bg, remind)


async def test_a_call_that_cannot_be_meant_is_refused(bg: ManualBG) -> None:
    """A lone string, a state that is none, a count of none, arguments that no such job can have."""
    await bg.enqueue(remind, "Ada")
    with pytest.raises(TypeError, match=r"args=\['Ada'\]"):
        await assert_enqueued(bg, remind, args="Ada")
    with pytest.raises(ValueError, match="done"):
        await assert_enqueued(bg, remind, state="done")
    with pytest.raises(ValueError, match="refute_enqueued"):
        await assert_enqueued(bg, remind, count=0)
    with pytest.raises(ArgumentsError):
        await assert_enqueued(bg, remind, args=["Ada", "not a date"])
    with pytest.raises(UnknownTaskError):
        await assert_enqueued(bg, "unknown", args=["Ada"])
