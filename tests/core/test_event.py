"""An event is a fact about a job: its wire form is one SSE frame with CloudEvents names, and filters pick it out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.core.event import FINAL_EVENTS, Event, EventFilter, EventType, encode, event_id
from asyncbg.core.job import FINAL_STATES, JobState

AT_MS = 1_795_342_500_250
NAMES = st.sampled_from(["a", "b", "c"])
TYPES = st.sampled_from(["job.queued", "job.failed", "email.sent", "email.sent_again"])
EVENTS = st.builds(Event, st.just(1), TYPES, st.just(AT_MS), NAMES, NAMES, NAMES, NAMES, st.just(1))


def queued(data: str | None = None, *, seq: int = 7) -> Event:
    """An event of one job."""
    return Event(seq, "job.queued", AT_MS, "j1", "send_email", "b1", "ada", 2, data)


def fields(frame: bytes) -> list[tuple[str, str]]:
    """The fields of one frame, read as a browser reads them (WHATWG HTML, 9.2.6)."""
    text = frame.decode()
    assert text.endswith("\n\n")
    lines = text[:-2].replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(name, value.removeprefix(" ")) for name, _, value in (line.partition(":") for line in lines)]


def test_an_event_is_one_frame_with_cloudevents_names() -> None:
    """id, event and one line of JSON with exactly the contract's names."""
    frame = fields(encode(queued('{"reason":"due"}'), "e5"))

    assert [name for name, _ in frame] == ["id", "event", "data"]
    assert dict(frame)["id"] == "e5-7"
    assert dict(frame)["event"] == "job.queued"
    assert json.loads(dict(frame)["data"]) == {
        "id": "e5-7",
        "type": "job.queued",
        "time": "2026-11-22T10:15:00.250Z",
        "subject": "j1",
        "task": "send_email",
        "batch": "b1",
        "owner": "ada",
        "attempt": 2,
        "data": {"reason": "due"},
    }


def test_progress_carries_no_id() -> None:
    """An event that is not stored does not move a client's cursor."""
    frame = fields(encode(Event(0, "job.progress", AT_MS, "j1", "t", "b", "ada", 1, '{"current":1}'), "e5"))

    assert [name for name, _ in frame] == ["event", "data"]
    assert json.loads(dict(frame)["data"])["id"] is None


def test_an_event_without_data_carries_an_empty_object() -> None:
    """``data`` is always an object."""
    assert json.loads(dict(fields(encode(queued(), "e5")))["data"])["data"] == {}


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.booleans()))
def test_whatever_a_task_publishes_stays_one_frame(data: dict[str, object]) -> None:
    """Line ends of every kind stay inside the JSON, and the data reads back as it was."""
    frame = fields(encode(queued(json.dumps(data, ensure_ascii=False)), "e5"))

    assert [name for name, _ in frame] == ["id", "event", "data"]
    assert json.loads(frame[2][1])["data"] == data


def test_text_that_has_no_utf_8_form_is_sent_as_near_as_it_can_be() -> None:
    """A file name that the operating system could not decode ends no stream."""
    frame = fields(encode(queued(json.dumps({"name": "a\udcff"})), "e5"))

    assert json.loads(frame[2][1])["data"] == {"name": "a?"}


def test_an_event_id_is_fit_for_an_event_source() -> None:
    """``<epoch>-<seq>``."""
    assert event_id("e5", 12) == "e5-12"


def test_every_state_has_the_event_of_its_name_or_its_own_word() -> None:
    """A job that enters a state says so: by the state's name, an attempt's begin as ``job.started``."""
    names = {kind.value for kind in EventType}

    assert {state for state in JobState if f"job.{state}" not in names} == {JobState.RUNNING}
    assert {f"job.{state}" for state in FINAL_STATES} == set(FINAL_EVENTS)


@pytest.mark.parametrize("kind", list(EventType))
def test_an_event_is_final_where_the_job_is(kind: EventType) -> None:
    """Exactly succeeded, failed and cancelled end a job."""
    event = queued()._replace(type=kind.value)

    assert event.is_final is (kind in {EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})


@given(EVENTS)
def test_an_empty_filter_takes_everything(event: Event) -> None:
    """What is not named is not narrowed."""
    assert EventFilter().matches(event)


@given(
    EVENTS,
    st.builds(
        EventFilter,
        jobs=st.frozensets(NAMES, max_size=2),
        tasks=st.frozensets(NAMES, max_size=2),
        batches=st.frozensets(NAMES, max_size=2),
        types=st.frozensets(TYPES, max_size=2),
        owner=st.none() | NAMES,
    ),
)
def test_a_filter_takes_what_fits_all_it_names(event: Event, wanted: EventFilter) -> None:
    """The dimensions narrow together; within one, any of the names will do."""
    asked = [(wanted.jobs, event.job_id), (wanted.tasks, event.task), (wanted.batches, event.batch)]
    asked += [(wanted.types, event.type), (frozenset([wanted.owner] if wanted.owner else []), event.owner)]

    assert wanted.matches(event) is all(not names or value in names for names, value in asked)


@pytest.mark.parametrize(
    ("wanted", "kind", "matches"),
    [
        ("email.*", "email.sent", True),
        ("*", "email.sent", True),
        ("email.sent*", "email.sent_again", True),
        ("email.sent", "email.sent_again", False),
        ("email.*", "job.queued", False),
    ],
)
def test_a_type_may_end_in_a_star(wanted: str, kind: str, matches: bool) -> None:
    """``email.*`` takes every type that begins so; a name without a star only itself."""
    assert EventFilter(types=frozenset({wanted})).matches(queued()._replace(type=kind)) is matches
