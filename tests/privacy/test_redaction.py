"""Redaction: what is hidden, what is left alone, and that it stays quick."""

import logging
import sys
import time
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.privacy import RedactingFilter, mask, pseudonym, redact, use_pseudonym_key


def test_a_pseudonym_is_stable_and_names_its_kind() -> None:
    """The same value gets the same stand-in, another value another, and the value is not in it."""
    assert mask("ada@example.com", "email") == mask("ada@example.com", "email")
    assert mask("ada@example.com", "email") != mask("bob@example.com", "email")
    assert mask("ada@example.com", "email").startswith("[email:")
    assert "ada" not in mask("ada@example.com")


def test_a_key_ties_pseudonyms_across_processes() -> None:
    """With the same key pseudonyms are the same; with another they are not."""
    use_pseudonym_key(b"one")
    first = mask("Ada")
    use_pseudonym_key(b"two")
    assert mask("Ada") != first
    use_pseudonym_key(b"one")
    assert mask("Ada") == first


def test_an_empty_pseudonym_key_is_refused() -> None:
    """An empty key would be everybody's."""
    with pytest.raises(ValueError, match="empty"):
        use_pseudonym_key(b"")


@pytest.mark.parametrize(
    ("kind", "shown"), [("secret", "[secret]"), ("password", "[secret]"), ("token", "[secret]"), ("card", "[card]")]
)
def test_secrets_and_cards_get_no_pseudonym(kind: str, shown: str) -> None:
    """Nothing at all is told of a secret or a card number."""
    assert mask("hunter2", kind) == shown


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("mail to O'Brien.x+tag@sub.example.co.uk.", "Brien"),
        ("GET /send-notification/ada%40example.com", "ada"),
        ("to ada@localhost", "ada"),
        ("invalid literal: 'ada@example.com'", "ada"),
        ("...ada@example.com, b'ada@example.com'", "ada"),
        ("to jörg@bücher.example", "jörg"),
        ("call +49 30 1234567", "1234567"),
        ("call +1.555.123.4567 now", "4567"),
        ("call (555) 123-4567", "4567"),
        ("card 4111 1111 1111 1111", "1111"),
        ("card=378282246310005", "8282"),
        ("pay DE89 3704 0044 0532 0130 00 SOON", "3704"),
        ("pay GB29NWBK60161331926819", "NWBK"),
        ("got eyJhbGciOiJI.eyJzdWIiOiIx.abc_-1", "eyJ"),
        ("Authorization: Basic YWRhOmh1bnRlcjI=", "YWRh"),
        ("sent Bearer aB3abcdefghi", "aB3"),
        ("/jobs/1/events?ticket_token=hunter2&x=1", "hunter2"),
        ('{"password": "hunter 2", "x": 1}', "hunter"),
        ("{'api_key': 'hunter2'}", "hunter2"),
        ("ASYNCBG_SMTP__PASSWORD=hunter2", "hunter2"),
        ("postgresql://ada:p@ss@db.example/x", "p@ss"),
    ],
)
def test_what_is_personal_or_secret_is_hidden(text: str, hidden: str) -> None:
    """The pattern is gone, and redacting again changes nothing."""
    clean = redact(text)

    assert hidden in text
    assert hidden not in clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "job 018f3c1e-7b2a-7cc1-8a1e-0123456789ab of 12345678-1234-7234-8123-123456789012",
        "2026-11-22T10:15:00.250+00:00 1800000000000 1800000000000000000",
        "127.0.0.1:54321 10.255.255.255 2001:db8::1 version 1.2.3-4 react@18.2.0",
        "took +1.2345678 s, 0.4111111111111111 of 4111111111111112",
        "basic information about max_tokens=512; Basic Authentication",
        "https://example.com/a@b/c?page=2",
        "INFO claimed 17 jobs: task=send_email attempt=1",
        "DE88 3704 0044 0532 0130 00",
    ],
)
def test_what_is_neither_is_left_alone(text: str) -> None:
    """Ids, times, addresses, versions and numbers that fail their check pass unchanged."""
    assert redact(text) == text


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("email", "ada@example.com", "ADA@Example.COM"),
        ("email", "ada+x@example.com", "ada%2Bx%40example.com"),
        ("email", "ada@example.com", "ada&#64;example.com"),
        ("phone", "+49 (0)30 901820", "0049-30-901820"),
        ("phone", "(202) 555-0143", "+1 202.555.0143"),
        ("iban", "DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
    ],
)
def test_a_value_written_differently_keeps_its_pseudonym(kind: str, one: str, other: str) -> None:
    """Case, separators and escapes do not break the correlation, neither in text nor in a marked field."""
    assert pseudonym(one, kind=kind) == mask(other, kind) == redact(one) == redact(other)


@pytest.mark.parametrize("kept", ["password=%s", "password=****", "password: required", "api_key=${API_KEY}"])
def test_what_only_stands_where_a_secret_would_is_kept(kept: str) -> None:
    """Templates, masks and words about a secret are no secrets."""
    assert redact(kept) == kept


def test_a_stand_in_is_left_as_it_is() -> None:
    """Digits of a pseudonym that look like a phone number are not redacted again."""
    assert redact("[phone:12345678] password=[email:00112233]") == "[phone:12345678] password=[email:00112233]"


@given(st.text(max_size=200) | st.text(alphabet=st.characters(categories=["Cs", "Nd", "Po", "Pd", "Zs", "Lu"])))
def test_no_text_is_too_strange(text: str) -> None:
    """Lone surrogates, digits of any script, controls: nothing raises, and twice is once."""
    once = redact(text)

    assert redact(once) == once


@given(st.lists(st.sampled_from(["ada@example.com", "token=", "x7y8z9q1", "+49 30 901820", " ", "[", '"', "'", "%40"])))
def test_pieces_put_together_are_redacted_once(pieces: list[str]) -> None:
    """Whatever stands beside what, what is hidden hides nothing from the second look."""
    once = redact("".join(pieces))

    assert redact(once) == once


@given(st.text(alphabet="aA1 @.:/=+-%[]\"'eyJpasword4", max_size=80))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """Whatever the text, what was redacted is not redacted again."""
    once = redact(text)

    assert redact(once) == once


@pytest.mark.parametrize(
    "unit", ["a", "a@", "a.b", "-eyJ", "password='", "+1", "://", "bearer ", "AB12 ", "1234-", "a%40b.", "passwd  "]
)
def test_long_hostile_text_takes_linear_time(unit: str) -> None:
    """A hundred thousand characters made to trip the patterns are done in well under a second."""
    text = unit * (100_000 // len(unit))
    started = time.process_time()

    redact(text)

    assert time.process_time() - started < 1.0


def record(message: str, *args: object) -> logging.LogRecord:
    """A log record that went through the filter."""
    made = logging.LogRecord("test", logging.INFO, __file__, 1, message, args, None)
    assert RedactingFilter().filter(made)
    return made


def test_the_filter_redacts_a_secret_split_between_template_and_argument() -> None:
    """The formatted message is what is looked at, not its parts."""
    assert record("password=%s, %d tries", "hunter2", 3).getMessage() == "password=[secret], 3 tries"


def test_the_filter_keeps_arguments_where_they_are() -> None:
    """uvicorn's access log formats its five arguments itself, so they stay five."""
    made = record('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", "/send-notification/ada@example.com", "1.1", 202)

    assert isinstance(made.args, tuple)
    assert len(made.args) == 5
    assert made.args[4] == 202
    assert "ada" not in made.getMessage()


def test_the_filter_redacts_tracebacks() -> None:
    """What an exception says is redacted too."""
    try:
        int("ada@example.com")
    except ValueError:
        made = logging.LogRecord("test", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    RedactingFilter().filter(made)

    text = logging.Formatter().format(made)

    assert "ValueError" in text
    assert "ada" not in text


def test_a_record_that_cannot_be_formatted_is_left_to_logging() -> None:
    """A template that does not fit its arguments is not the filter's business."""
    made = logging.LogRecord("test", logging.INFO, __file__, 1, "%d", ("x",), None)

    assert RedactingFilter().filter(made)


def failure(message: str, *template: str) -> logging.LogRecord:
    """A record of an error that says this, not filtered yet."""
    msg, *args = template or ("failed",)
    try:
        fail(message)
    except ValueError:
        return logging.LogRecord("test", logging.ERROR, __file__, 1, msg, tuple(args), sys.exc_info())


def fail(message: str) -> NoReturn:
    """Raise what user code would."""
    raise ValueError(message)


def test_a_value_cannot_begin_a_line_of_its_own() -> None:
    """Line breaks and terminal escapes in what a user sent are shown, not obeyed."""
    made = record("hello %s", "Ada\r\nINFO: forged \x1b[31m\u2028")

    assert logging.Formatter().format(made) == "hello Ada\\r\\nINFO: forged \\x1b[31m\\u2028"


def test_an_interpolated_value_cannot_either() -> None:
    """It is the finished line that is escaped, so it does not matter how the value came in."""
    made = record("hello Ada\nINFO: forged")

    assert made.getMessage() == "hello Ada\\nINFO: forged"


def test_only_a_record_begins_in_the_first_column() -> None:
    """A traceback is indented, so the message of an error cannot pretend to be a record."""
    made = failure("x\nINFO: forged, mail ada@example.com")
    RedactingFilter().filter(made)

    _, *lines = logging.Formatter().format(made).splitlines()

    assert any("INFO: forged" in line for line in lines)
    assert all(line.startswith("  ") for line in lines)
    assert "ada" not in "".join(lines)


def test_no_handler_gets_the_exception_itself() -> None:
    """A handler that formats the exception on its own would show what the filter hid."""
    made = failure("ada@example.com")
    RedactingFilter().filter(made)

    assert made.exc_info is None


def test_a_second_filter_changes_nothing() -> None:
    """A record passes every handler's filter, and looks the same behind each."""
    made = failure("ada@example.com\nx", "a\nb %s", "c\nd")
    made.stack_info = "s\nt"
    RedactingFilter().filter(made)
    first = logging.Formatter().format(made)
    RedactingFilter().filter(made)

    assert logging.Formatter().format(made) == first


def test_what_extra_adds_is_redacted() -> None:
    """Formatters that write JSON show the extra attributes too."""
    made = logging.LogRecord("test", logging.INFO, __file__, 1, "x", (), None)
    made.__dict__ |= {"to": "ada@example.com", "headers": {"from": ["bob@example.com"]}, "n": 1}
    RedactingFilter().filter(made)

    assert "example" not in str(vars(made))
    assert vars(made)["n"] == 1


def test_a_colored_message_keeps_its_arguments_or_goes() -> None:
    """uvicorn's template for terminals must not be shown without its arguments once the message is finished."""
    made = logging.LogRecord("test", logging.INFO, __file__, 1, "to %s", (ValueError("ada@example.com"),), None)
    made.__dict__["color_message"] = "to \x1b[1m%s\x1b[0m"
    RedactingFilter().filter(made)

    assert "color_message" not in vars(made)
    assert "ada" not in made.getMessage()
