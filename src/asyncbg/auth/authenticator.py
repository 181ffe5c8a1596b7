"""Find out who calls: by a key, a browser's session or a stream's ticket, or nobody who needs to say it.

What was found is good for half a second, so that a request seldom costs a look into the database and a revocation is
still obeyed within a second, whichever process or command made it.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import HTTPConnection

from asyncbg.auth.api_key import USUAL_SCOPES
from asyncbg.auth.caller import EVERYBODY, WRONG_TICKET, Caller
from asyncbg.auth.keys import KeyRecord, Keys
from asyncbg.auth.origin import refuse_cross_site, refuse_strangers
from asyncbg.auth.sessions import Session, Sessions
from asyncbg.auth.tickets import Tickets
from asyncbg.errors import UnauthenticatedError

COOKIE: Final = "__Host-asyncbg"
"""The prefix makes browsers refuse it from elsewhere: only with Secure, Path=/ and no Domain (RFC 6265bis, 4.1.3.2)."""
FRESH_S: Final = 0.5

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)
_MOST_KNOWN = 10_000
_GUEST = Caller(owner=EVERYBODY.owner, scopes=USUAL_SCOPES)
_WRONG_KEY = "there is no such API key; it may be mistyped, expired or revoked"


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found, and when to look again."""

    caller: Caller
    until: float


class Gate:
    """Knows the callers of one service. ``allow_anonymous`` is the setting: yes, no, or None: while no key exists."""

    def __init__(self, keys: Keys, sessions: Sessions, tickets: Tickets, *, allow_anonymous: bool | None) -> None:
        """Ask these three."""
        self.keys = keys
        self.sessions = sessions
        self.tickets = tickets
        self._allow_anonymous = allow_anonymous
        self._known: dict[bytes, _Known] = {}
        self._salt = os.urandom(32)

    async def caller(self, request: HTTPConnection, *, takes_ticket: bool = False) -> Caller:
        """Who sends ``request``. The strongest credentials count, and once there are any they have to be good.

        ``takes_ticket``: its route opens a stream, so a ticket in the query is one of them.

        Raises UnauthenticatedError, CrossSiteError, ForeignHostError.
        """
        method: str = request.scope.get("method", "GET")
        if "authorization" in request.headers:
            return await self._by_key(request)
        if takes_ticket and (ticket := request.query_params.get("ticket")) is not None:
            return await self._by_ticket(ticket, request.scope["path"], request.headers.get("last-event-id"))
        if (token := request.cookies.get(COOKIE)) is not None:
            caller = await self._fresh(f"session {token}", lambda: self._by_session(token))
            refuse_cross_site(method, request.headers, must_tell=True)
            return caller
        caller = await self._fresh("", self._anonymous)
        if self._allow_anonymous is None:
            refuse_strangers(request)
        refuse_cross_site(method, request.headers, must_tell=False)
        return caller

    async def sign_in(self, key: str) -> tuple[str, Session, KeyRecord]:
        """Begin a browser's session with a key: its token, itself, and whose key it is. Raises UnauthenticatedError."""
        record = await self.keys.verify(key.strip())
        if record is None:
            raise UnauthenticatedError(_WRONG_KEY, is_wrong=True)
        token, session = await self.sessions.begin(record.id)
        return token, session, record

    async def sign_out(self, caller: Caller) -> None:
        """End the session that a caller came with, if it came with one."""
        if caller.session_id is not None:
            await self.sessions.end(caller.session_id)
            self.forget()

    def forget(self) -> None:
        """Look again for everybody."""
        self._known.clear()

    async def judge(self) -> Callable[[Caller], bool]:
        """Look once, and say of any caller whether the credentials it came with still stand."""
        keys, sessions, anonymous = await self.keys.usable(), await self.sessions.living(), await self._admitted()

        def stands(caller: Caller) -> bool:
            if caller.key_id is None:
                return anonymous is not None and caller.scopes <= anonymous.scopes
            if caller.session_id is not None and sessions.get(caller.session_id) != caller.key_id:
                return False
            return caller.key_id in keys

        return stands

    async def confirm(self, caller: Caller) -> None:
        """Raises UnauthenticatedError where the credentials that ``caller`` came with do not stand any more."""
        if not (await self.judge())(caller):
            raise UnauthenticatedError("the credentials of this request ended while it waited", is_wrong=True)

    async def _by_key(self, request: HTTPConnection) -> Caller:
        sent = request.headers.getlist("authorization")
        found = _BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
        if found is None:
            raise UnauthenticatedError("the Authorization header should be: Bearer KEY", is_wrong=True)
        key = found[1]

        async def look() -> Caller:
            return _holder(await self.keys.verify(key))

        return await self._fresh(f"key {key}", look)

    async def _by_session(self, token: str) -> Caller:
        session = await self.sessions.find(token)
        if session is None:
            raise UnauthenticatedError("the session is over; sign in again", is_wrong=True)
        return _holder(await self.keys.find(session.key_id), session)

    async def _by_ticket(self, ticket: str, path: str, cursor: str | None) -> Caller:
        """Looked up each time: a ticket is good for as long as its holder's credentials stand."""
        holder = await self.tickets.redeem(ticket, path, cursor=cursor)
        caller = Caller.load(holder) if holder is not None else None
        if caller is None or not (await self.judge())(caller):
            raise UnauthenticatedError(WRONG_TICKET, is_wrong=True)
        return caller

    async def _anonymous(self) -> Caller:
        caller = await self._admitted()
        if caller is None:
            raise UnauthenticatedError
        return caller

    async def _admitted(self) -> Caller | None:
        """Who a caller without credentials is: everybody while no key exists, a guest beside keys, or not let in."""
        if self._allow_anonymous is False:
            return None
        if not await self.keys.exist():
            return EVERYBODY
        return _GUEST if self._allow_anonymous else None

    async def _fresh(self, credentials: str, look: Callable[[], Awaitable[Caller]]) -> Caller:
        """What was found for these credentials a moment ago, or what is found now. Only good ones are remembered."""
        mark = hashlib.blake2b(credentials.encode("utf-8", "replace"), key=self._salt, digest_size=32).digest()
        now = asyncio.get_running_loop().time()
        known = self._known.get(mark)
        if known is not None and now < known.until:
            return known.caller
        caller = await look()
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[mark] = _Known(caller, now + FRESH_S)
        return caller


def _holder(record: KeyRecord | None, session: Session | None = None) -> Caller:
    """The caller that a key makes. Raises UnauthenticatedError for none."""
    if record is None:
        raise UnauthenticatedError(_WRONG_KEY, is_wrong=True)
    session_id = session.id if session else None
    return Caller(owner=record.name, scopes=record.scopes, key_id=record.id, session_id=session_id)
