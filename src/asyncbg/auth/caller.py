"""The authenticated caller of a request, and what it may do and see.

In the service a middleware authenticates every request before it is routed; in your own application the dependency
given to ``bg.router(auth=…)`` does. Without either every request has the same caller, which may do everything.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from asyncbg.auth.access import required_access
from asyncbg.auth.api_key import ALL_SCOPES, DEFAULT_SCOPES, Scope
from asyncbg.core.job import ANONYMOUS, JobRecord
from asyncbg.errors import JobNotFoundError, ScopeError, UnauthenticatedError

WRONG_TICKET: Final = "the ticket is used, expired or for another stream; get a new one"
_CALLER: Final = "asyncbg.caller"
_RECHECK: Final = "asyncbg.recheck"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The caller of a request. ``key_id`` and ``session_id`` identify its credentials, to check them again."""

    owner: str
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    key_id: str | None = None
    session_id: bytes | None = None

    @property
    def visible_owner(self) -> str | None:
        """The owner whose jobs it may see; None for all owners."""
        return None if Scope.ADMIN in self.scopes else self.owner

    def has_scope(self, scope: Scope) -> bool:
        """Whether it has that scope, or ``admin``."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def require(self, scope: Scope) -> None:
        """Raise UnauthenticatedError where it has no scopes at all, ScopeError where it lacks ``scope``."""
        if not self.scopes:
            raise UnauthenticatedError
        if not self.has_scope(scope):
            raise ScopeError(scope)

    def require_visible(self, record: JobRecord) -> JobRecord:
        """Return ``record``. Raise JobNotFoundError where the caller may not see it, as for an unknown job."""
        if self.visible_owner is not None and record.owner != self.owner:
            raise JobNotFoundError(record.id)
        return record

    def dump(self) -> str:
        """Return it as JSON for a ticket, without the scopes that write."""
        scopes = sorted(self.scopes & {Scope.READ, Scope.ADMIN})
        session = self.session_id.hex() if self.session_id else None
        return json.dumps({"owner": self.owner, "scopes": scopes, "key": self.key_id, "session": session})

    @classmethod
    def load(cls, text: str) -> "Caller":
        """Return the caller that :meth:`dump` wrote."""
        kept = json.loads(text)
        session = bytes.fromhex(kept["session"]) if kept["session"] else None
        scopes = frozenset(map(Scope, kept["scopes"]))
        return cls(owner=kept["owner"], scopes=scopes, key_id=kept["key"], session_id=session)


ANONYMOUS_ADMIN: Final = Caller(owner=ANONYMOUS, scopes=ALL_SCOPES)
"""The caller of every request where authentication is off."""
NO_CALLER: Final = Caller(owner="", scopes=frozenset())
"""The caller of a request without credentials to a route that requires none; it has no scopes."""


def set_caller(connection: HTTPConnection, caller: Caller) -> None:
    """Set the caller of a request."""
    connection.scope[_CALLER] = caller


def get_caller(connection: HTTPConnection) -> Caller | None:
    """Return the caller of a request; None where it was not authenticated."""
    found = connection.scope.get(_CALLER)
    return found if isinstance(found, Caller) else None


async def require_caller(request: HTTPConnection) -> Caller:
    """Return the caller of a request. Raise UnauthenticatedError where it has no scopes."""
    caller = get_caller(request) or ANONYMOUS_ADMIN
    if not caller.scopes:
        raise UnauthenticatedError
    return caller


def set_recheck(connection: HTTPConnection, recheck: Callable[[], Awaitable[object]]) -> None:
    """Set how :func:`recheck_caller` authenticates the request again; ``recheck`` raises where it fails."""
    connection.scope[_RECHECK] = recheck


async def recheck_caller(connection: HTTPConnection) -> None:
    """Check after a long wait that the caller's credentials are still valid. Raise AuthError."""
    recheck = connection.scope.get(_RECHECK)
    if recheck is not None:
        await recheck()


async def current_owner(request: Request) -> str:
    """Return the owner of the jobs that this request submits."""
    return (await require_caller(request)).owner


CurrentCaller = Annotated[Caller, Depends(require_caller)]
"""A route parameter for the caller."""
CurrentOwner = Annotated[str, Depends(current_owner)]
"""A route parameter for the caller's owner name."""


def authenticate_with(auth: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
    """Return a dependency that authenticates each request with ``auth``, a dependency of the application.

    ``auth`` returns the owner's name, or an object with ``owner`` and ``scopes``; a name alone may submit and read.
    """

    async def authenticate(request: Request, answer: Annotated[Any, Depends(auth)]) -> None:
        caller = _caller(answer)
        scope = required_access(request.scope["endpoint"], request.method).scope
        if scope is not None:
            caller.require(scope)
        set_caller(request, caller)

    return authenticate


def _caller(answer: Any) -> Caller:
    if isinstance(answer, Caller):
        return answer
    owner = answer if isinstance(answer, str) else getattr(answer, "owner", None)
    if not owner:
        raise UnauthenticatedError
    scopes = DEFAULT_SCOPES if isinstance(answer, str) else getattr(answer, "scopes", DEFAULT_SCOPES)
    known = frozenset(Scope(scope) for scope in scopes if scope in ALL_SCOPES)
    return Caller(owner=str(owner), scopes=known)
