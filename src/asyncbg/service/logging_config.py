"""Logging configuration of ``asyncbg serve`` and ``asyncbg worker``: one line per record, as text or JSON."""

import copy
import json
import logging
from typing import Any, Final

from asyncbg.core.clock import rfc3339
from asyncbg.privacy import RedactingFilter
from asyncbg.settings import Settings

_STANDARD: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {
    "message",
    "asctime",
    "color_message",
}
_ACCESS: Final = ("client", "method", "path", "http_version", "status")
"""The arguments of a record of ``uvicorn.access``."""


def logging_config(settings: Settings) -> dict[str, Any]:
    """Return uvicorn's logging configuration (errors to stderr, access log to stdout) with every handler redacted."""
    from uvicorn.config import LOGGING_CONFIG

    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["asyncbg"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
    config["root"] = {"handlers": ["default"], "level": "WARNING"}
    config["filters"] = {"redact": {"()": RedactingFilter, "mask": settings.privacy.mask}}
    for handler in config["handlers"].values():
        handler["filters"] = ["redact"]
    if settings.server.log_format == "json":
        config["formatters"] = {name: {"()": JsonFormatter} for name in config["formatters"]}
    return config


class JsonFormatter(logging.Formatter):
    """Formatter that writes a record as one line of ASCII JSON: time, level, logger, message, access fields, traceback.

    It formats records that the redacting filter of the handler has processed.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break."""
        members: dict[str, Any] = {
            "time": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == len(_ACCESS):
            members |= dict(zip(_ACCESS, record.args, strict=True))
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if extra:
            members["extra"] = extra
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        for name, text in (("exception", record.exc_text), ("stack", record.stack_info)):
            if text:
                members[name] = text
        return json.dumps(members, separators=(",", ":"), default=_kind)


def _kind(value: object) -> str:
    """Return the type of a value without a JSON form: its ``str`` has not been redacted."""
    return f"<{type(value).__name__}>"
