"""Authentication of requests: by an API key, a browser session or a stream ticket, or as the anonymous caller.

Results are cached for half a second, so that most requests need no database query and a revocation still takes effect
within a second, whichever process or command made it.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import HTTPConnection

from asyncbg.auth.api_key import DEFAULT_SCOPES
from asyncbg.auth.caller import ANONYMOUS_ADMIN, WRONG_TICKET, Caller
from asyncbg.auth.keys import KeyRecord, Keys
from asyncbg.auth.origin import refuse_cross_site, require_local
from asyncbg.auth.sessions import Session, Sessions
from asyncbg.auth.tickets import Tickets
from asyncbg.core.job import ANONYMOUS
from asyncbg.errors import UnauthenticatedError

COOKIE: Final = "__Host-asyncbg"
"""With this prefix browsers accept the cookie only with Secure, Path=/ and no Domain (RFC 6265bis, 4.1.3.2)."""
CACHE_S: Final = 0.5

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]+) *", re.IGNORECASE)
_MAX_CACHED = 10_000
_ANONYMOUS_USER = Caller(owner=ANONYMOUS, scopes=DEFAULT_SCOPES)
_WRONG_KEY = "unknown API key: it may be mistyped, expired or revoked"


@dataclass(frozen=True, slots=True)
class _Cached:
    """A caller, and when its cache entry expires (loop seconds)."""

    caller: Caller
    expires_at: float


class Authenticator:
    """Authenticates the requests of a service."""

    def __init__(self, keys: Keys, sessions: Sessions, tickets: Tickets, *, allow_anonymous: bool | None) -> None:
        """``allow_anonymous`` is the setting: yes, no, or None: only while no key exists."""
        self.keys = keys
        self.sessions = sessions
        self.tickets = tickets
        self._allow_anonymous = allow_anonymous
        self._cache: dict[bytes, _Cached] = {}
        self._salt = os.urandom(32)

    async def authenticate(self, request: HTTPConnection, *, accept_ticket: bool = False) -> Caller:
        """Return the caller of ``request``. The strongest credentials of the request count, and have to be valid.

        ``accept_ticket``: the route opens a stream, so a ticket in the query counts as credentials.

        Raise UnauthenticatedError, CrossSiteError, ForeignHostError.
        """
        method: str = request.scope.get("method", "GET")
        if "authorization" in request.headers:
            return await self._by_key(request)
        if accept_ticket and (ticket := request.query_params.get("ticket")) is not None:
            return await self._by_ticket(ticket, request.scope["path"], request.headers.get("last-event-id"))
        if (token := request.cookies.get(COOKIE)) is not None:
            caller = await self._cached(f"session {token}", lambda: self._by_session(token))
            refuse_cross_site(method, request.headers, require_origin=True)
            return caller
        caller = await self._cached("", self._require_anonymous)
        if self._allow_anonymous is None:
            require_local(request)
        refuse_cross_site(method, request.headers, require_origin=False)
        return caller

    async def sign_in(self, key: str) -> tuple[str, Session, KeyRecord]:
        """Create a browser session for a key. Return its token, the session and the key. Raise UnauthenticatedError."""
        record = await self.keys.verify(key.strip())
        if record is None:
            raise UnauthenticatedError(_WRONG_KEY, is_wrong=True)
        token, session = await self.sessions.create(record.id)
        return token, session, record

    async def sign_out(self, caller: Caller) -> None:
        """Delete the session of a caller, if it has one."""
        if caller.session_id is not None:
            await self.sessions.delete(caller.session_id)
            self.clear_cache()

    def clear_cache(self) -> None:
        """Authenticate every caller again on its next request."""
        self._cache.clear()

    async def load_valid(self) -> Callable[[Caller], bool]:
        """Read all valid credentials once. Return a function that checks the credentials of a caller against them."""
        keys, sessions, anonymous = await self.keys.usable(), await self.sessions.active(), await self._anonymous()

        def is_valid(caller: Caller) -> bool:
            if caller.key_id is None:
                return anonymous is not None and caller.scopes <= anonymous.scopes
            if caller.session_id is not None and sessions.get(caller.session_id) != caller.key_id:
                return False
            return caller.key_id in keys

        return is_valid

    async def recheck(self, caller: Caller) -> None:
        """Raise UnauthenticatedError where the credentials of ``caller`` are no longer valid."""
        if not (await self.load_valid())(caller):
            raise UnauthenticatedError("the credentials of this request expired while it waited", is_wrong=True)

    async def _by_key(self, request: HTTPConnection) -> Caller:
        sent = request.headers.getlist("authorization")
        found = _BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
        if found is None:
            raise UnauthenticatedError("the Authorization header should be: Bearer KEY", is_wrong=True)
        key = found[1]

        async def verify() -> Caller:
            return _key_caller(await self.keys.verify(key))

        return await self._cached(f"key {key}", verify)

    async def _by_session(self, token: str) -> Caller:
        session = await self.sessions.find(token)
        if session is None:
            raise UnauthenticatedError("the session has expired; sign in again", is_wrong=True)
        return _key_caller(await self.keys.find(session.key_id), session)

    async def _by_ticket(self, ticket: str, path: str, cursor: str | None) -> Caller:
        """Not cached: a ticket is valid only while the credentials of its holder are."""
        holder = await self.tickets.redeem(ticket, path, cursor=cursor)
        caller = Caller.load(holder) if holder is not None else None
        if caller is None or not (await self.load_valid())(caller):
            raise UnauthenticatedError(WRONG_TICKET, is_wrong=True)
        return caller

    async def _require_anonymous(self) -> Caller:
        caller = await self._anonymous()
        if caller is None:
            raise UnauthenticatedError
        return caller

    async def _anonymous(self) -> Caller | None:
        """Return the caller of a request without credentials: with all scopes while no key exists; None: refused."""
        if self._allow_anonymous is False:
            return None
        if not await self.keys.exist():
            return ANONYMOUS_ADMIN
        return _ANONYMOUS_USER if self._allow_anonymous else None

    async def _cached(self, credentials: str, load: Callable[[], Awaitable[Caller]]) -> Caller:
        """Return the caller for ``credentials`` from the cache, or load it. Failures are not cached."""
        digest = hashlib.blake2b(credentials.encode("utf-8", "replace"), key=self._salt, digest_size=32).digest()
        now = asyncio.get_running_loop().time()
        cached = self._cache.get(digest)
        if cached is not None and now < cached.expires_at:
            return cached.caller
        caller = await load()
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[digest] = _Cached(caller, now + CACHE_S)
        return caller


def _key_caller(record: KeyRecord | None, session: Session | None = None) -> Caller:
    """Return the caller with the scopes of a key. Raise UnauthenticatedError for None."""
    if record is None:
        raise UnauthenticatedError(_WRONG_KEY, is_wrong=True)
    session_id = session.id if session else None
    return Caller(owner=record.name, scopes=record.scopes, key_id=record.id, session_id=session_id)
