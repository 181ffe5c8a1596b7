"""Who is calling, and what that caller may do and see: one word for every route, whoever found it out.

In the service the guard finds it out before any route is looked for; in an application of your own it is the dependency
given to ``bg.router(auth=…)``. Without either everybody is the same caller, who may do everything.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from asyncbg.auth.access import access_of
from asyncbg.auth.api_key import ALL_SCOPES, USUAL_SCOPES, Scope
from asyncbg.core.job import ANONYMOUS, JobRecord
from asyncbg.errors import JobNotFoundError, ScopeError, UnauthenticatedError

WRONG_TICKET: Final = "the ticket is used, expired or for another stream; get a new one"
_BOUND: Final = "asyncbg.caller"
_CONFIRM: Final = "asyncbg.confirm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls. ``key_id`` and ``session_id`` name the credentials, for as long as they stand."""

    owner: str
    scopes: frozenset[Scope] = USUAL_SCOPES
    key_id: str | None = None
    session_id: bytes | None = None

    @property
    def visible(self) -> str | None:
        """Whose jobs it sees: its own, or everybody's (None)."""
        return None if Scope.ADMIN in self.scopes else self.owner

    def may(self, scope: Scope) -> bool:
        """Whether it has that scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def require(self, scope: Scope) -> None:
        """Raises UnauthenticatedError for nobody, ScopeError where the scope is missing."""
        if not self.scopes:
            raise UnauthenticatedError
        if not self.may(scope):
            raise ScopeError(scope)

    def own(self, record: JobRecord) -> JobRecord:
        """``record``, if the caller may see it. Raises JobNotFoundError, as for one that never was."""
        if self.visible is not None and record.owner != self.owner:
            raise JobNotFoundError(record.id)
        return record

    def dump(self) -> str:
        """As JSON, for a ticket: whoever shows it may only read."""
        scopes = sorted(self.scopes & {Scope.READ, Scope.ADMIN})
        session = self.session_id.hex() if self.session_id else None
        return json.dumps({"owner": self.owner, "scopes": scopes, "key": self.key_id, "session": session})

    @classmethod
    def load(cls, text: str) -> "Caller":
        """What :meth:`dump` wrote."""
        kept = json.loads(text)
        session = bytes.fromhex(kept["session"]) if kept["session"] else None
        scopes = frozenset(map(Scope, kept["scopes"]))
        return cls(owner=kept["owner"], scopes=scopes, key_id=kept["key"], session_id=session)


EVERYBODY: Final = Caller(owner=ANONYMOUS, scopes=ALL_SCOPES)
"""The one caller where nobody is asked who it is."""
NOBODY: Final = Caller(owner="", scopes=frozenset())
"""Whoever is at the few routes that are open, without credentials: it may do nothing else."""


def bind(connection: HTTPConnection, caller: Caller) -> None:
    """From here on ``caller`` is who calls."""
    connection.scope[_BOUND] = caller


def bound(connection: HTTPConnection) -> Caller | None:
    """Who calls, if that was found out."""
    found = connection.scope.get(_BOUND)
    return found if isinstance(found, Caller) else None


async def caller_of(request: HTTPConnection) -> Caller:
    """Who calls. Raises UnauthenticatedError for nobody."""
    caller = bound(request) or EVERYBODY
    if not caller.scopes:
        raise UnauthenticatedError
    return caller


def confirm_with(connection: HTTPConnection, confirm: Callable[[], Awaitable[object]]) -> None:
    """Let :func:`confirm` find out whether the caller's credentials still stand; ``confirm`` raises if not."""
    connection.scope[_CONFIRM] = confirm


async def confirm(connection: HTTPConnection) -> None:
    """Ask again who calls, after a wait that was long. Raises AuthError."""
    found = connection.scope.get(_CONFIRM)
    if found is not None:
        await found()


async def owner_of(request: Request) -> str:
    """The owner of what this request submits."""
    return (await caller_of(request)).owner


Asking = Annotated[Caller, Depends(caller_of)]
"""A route parameter that holds the caller."""
Owner = Annotated[str, Depends(owner_of)]
"""A route parameter that holds the caller's name."""


def asking(auth: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
    """A dependency that lets the application's own dependency ``auth`` say who calls.

    ``auth`` returns the owner, or something with ``owner`` and ``scopes``; a name alone may submit and read.
    """

    async def ask(request: Request, answer: Annotated[Any, Depends(auth)]) -> None:
        caller = _caller(answer)
        scope = access_of(request.scope["endpoint"], request.method).scope
        if scope is not None:
            caller.require(scope)
        bind(request, caller)

    return ask


def _caller(answer: Any) -> Caller:
    if isinstance(answer, Caller):
        return answer
    owner = answer if isinstance(answer, str) else getattr(answer, "owner", None)
    if not owner:
        raise UnauthenticatedError
    scopes = USUAL_SCOPES if isinstance(answer, str) else getattr(answer, "scopes", USUAL_SCOPES)
    known = frozenset(Scope(scope) for scope in scopes if scope in ALL_SCOPES)
    return Caller(owner=str(owner), scopes=known)
