"""Short-lived tickets for streams: a browser's EventSource can set no header, so it shows one of these in its URL."""

import secrets
from dataclasses import dataclass
from typing import Final

from asyncbg.clock import Clock
from asyncbg.errors import OverloadedError

LIFETIME_S: Final = 60
_MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a ticket is good for: one stream at ``path``, opened in the name of ``owner`` before ``expires_at_ms``."""

    path: str
    owner: str
    expires_at_ms: int


class Tickets:
    """The tickets that this process issued and that nobody has shown yet. At most 10,000 are kept."""

    def __init__(self, clock: Clock) -> None:
        """Let tickets expire by ``clock``."""
        self._clock = clock
        self._issued: dict[str, Ticket] = {}

    def issue(self, path: str, owner: str) -> tuple[str, Ticket]:
        """A new token and what it is good for. Raises OverloadedError when too many wait to be used."""
        self._forget_expired()
        if len(self._issued) >= _MOST:
            raise OverloadedError(f"{_MOST} stream tickets wait to be used; come back later", retry_after_s=LIFETIME_S)
        token = secrets.token_urlsafe(32)
        ticket = Ticket(path=path, owner=owner, expires_at_ms=self._clock.now_ms() + LIFETIME_S * 1000)
        self._issued[token] = ticket
        return token, ticket

    def redeem(self, token: str, path: str) -> str | None:
        """The owner in whose name ``path`` may be streamed, once; None for a token that is no good."""
        ticket = self._issued.get(token)
        if ticket is None or ticket.path != path:
            return None
        del self._issued[token]
        return ticket.owner if self._clock.now_ms() < ticket.expires_at_ms else None

    def _forget_expired(self) -> None:
        """Tickets live equally long, so the oldest are at the front."""
        now_ms = self._clock.now_ms()
        while self._issued:
            token, ticket = next(iter(self._issued.items()))
            if now_ms < ticket.expires_at_ms:
                return
            del self._issued[token]
