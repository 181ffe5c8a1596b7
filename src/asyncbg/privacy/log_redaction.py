"""Where the redacting filter goes: always on our own loggers, on all handlers of an application where it wishes.

A record of ours is clean before it comes to any handler, whoever set that up. What an application's own loggers say is
its own matter, unless ``privacy.redact_logs`` is on.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Final

from asyncbg.privacy import RedactingFilter

_OWN: Final = "asyncbg"


def guard_own_loggers(*, mask: bool) -> None:
    """Let nothing that our loggers say leave them unredacted; a filter of a logger is not asked for its children."""
    known = list(logging.root.manager.loggerDict)
    for name in (_OWN, *(name for name in known if name.startswith(f"{_OWN}."))):
        logger = logging.getLogger(name)
        if not _is_guarded(logger):
            logger.addFilter(RedactingFilter(mask=mask))


def guard_handlers(*, mask: bool) -> Callable[[], None]:
    """Put the filter on every handler there is now. Returns what takes those it added away again."""
    added = [(handler, RedactingFilter(mask=mask)) for handler in _handlers() if not _is_guarded(handler)]
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


def _is_guarded(filterer: logging.Filterer) -> bool:
    return any(isinstance(known, RedactingFilter) for known in filterer.filters)
