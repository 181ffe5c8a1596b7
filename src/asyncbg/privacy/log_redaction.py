"""Log redaction: records are redacted, and escaped so that no value can forge a line.

asyncbg's own loggers are always filtered; an application's handlers only where ``privacy.redact_logs`` is on."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from asyncbg.privacy.patterns.redaction import redact_json

# Control characters (C0 but the tab, DEL, C1), separators of lines, marks that turn the direction of writing.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime"}
_INDENT = "  "
_OWN: Final = "asyncbg"
_Hide: TypeAlias = Callable[[Any], Any]


class RedactingFilter(logging.Filter):
    """A filter that redacts and escapes every part of a record. Add it to handlers, which get every logger's records.

    The message and its arguments become one line; a traceback keeps its lines, indented, since only a record may begin
    in the first column. What ``extra=`` added is redacted too. With ``mask=False`` all is escaped and nothing redacted.
    """

    def __init__(self, name: str = "", *, mask: bool = True) -> None:
        """Take the records of ``name``, all by default; ``mask`` is what ``privacy.mask`` says."""
        super().__init__(name)
        self._hide: _Hide = redact_json if mask else _as_it_is

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record; always return True."""
        _clean_arguments(record, self._hide)
        _clean_message(record, self._hide)
        _clean_traceback(record, self._hide)
        _clean_extras(record, self._hide)
        return True


def _as_it_is(value: Any) -> Any:
    return value


def _clean_arguments(record: logging.LogRecord, hide: _Hide) -> None:
    """Texts among the arguments, each in its place: uvicorn's access log formats them itself."""
    if isinstance(record.args, tuple):
        record.args = tuple(_in_one_line(hide(arg)) if isinstance(arg, str) else arg for arg in record.args)


def _clean_message(record: logging.LogRecord, hide: _Hide) -> None:
    """The formatted message, since a secret may be split between template and argument."""
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001 - template and arguments disagree, or the repr of an argument fails: logging reports it
        return
    clean = _in_one_line(hide(message.rstrip("\n")))
    if clean != message and record.name != "uvicorn.access":
        record.msg, record.args = clean, ()
        record.__dict__.pop("color_message", None)  # uvicorn's template for terminals, which needs the arguments


def _clean_traceback(record: logging.LogRecord, hide: _Hide) -> None:
    """The traceback as text only, so that no handler formats the exception once more."""
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    record.exc_info = None
    if record.exc_text:
        record.exc_text = _indented(hide(record.exc_text))
    if record.stack_info:
        record.stack_info = _indented(hide(record.stack_info))


def _clean_extras(record: logging.LogRecord, hide: _Hide) -> None:
    for name, value in vars(record).items():
        if name not in _STANDARD and isinstance(value, str | list | dict):
            record.__dict__[name] = _clean_extra(name, value, hide)


def _clean_extra(name: str, value: Any, hide: _Hide) -> Any:
    if name == "color_message":
        return hide(value)
    return _in_one_line(hide(value)) if isinstance(value, str) else hide(value)


def _in_one_line(text: str) -> str:
    return text if text.isprintable() else _CONTROL.sub(_escape, text)


def _indented(text: str) -> str:
    lines = _CONTROL_BUT_LINES.sub(_escape, text).split("\n")
    return "\n".join(line if line.startswith(_INDENT) else _INDENT + line for line in lines)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def redact_own_loggers(*, mask: bool) -> None:
    """Filter every logger of asyncbg: a logger's filter does not apply to its children."""
    known = list(logging.root.manager.loggerDict)
    for name in (_OWN, *(name for name in known if name.startswith(f"{_OWN}."))):
        logger = logging.getLogger(name)
        if not _is_filtered(logger):
            logger.addFilter(RedactingFilter(mask=mask))


def redact_handlers(*, mask: bool) -> Callable[[], None]:
    """Add the filter to every existing handler. Return a function that removes the added ones."""
    added = [(handler, RedactingFilter(mask=mask)) for handler in _handlers() if not _is_filtered(handler)]
    for handler, guard in added:
        handler.addFilter(guard)

    def restore() -> None:
        for handler, guard in added:
            handler.removeFilter(guard)

    return restore


def _handlers() -> Iterator[logging.Handler]:
    """The handlers of all loggers, each once: one may be shared."""
    loggers = [
        logging.root,
        *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)),
    ]
    return iter({handler: None for logger in loggers for handler in logger.handlers})


def _is_filtered(filterer: logging.Filterer) -> bool:
    return any(isinstance(known, RedactingFilter) for known in filterer.filters)
