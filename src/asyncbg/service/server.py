"""The standalone service: builds its parts, wires them together and creates the application."""

import logging
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parseaddr
from functools import partial

import anyio.to_thread
from email_validator import EmailNotValidError, validate_email
from fastapi import APIRouter, FastAPI, HTTPException
from fastapi.responses import PlainTextResponse

from asyncbg import AsyncBG, Settings
from asyncbg.auth.access import Access, requires
from asyncbg.auth.authenticator import Authenticator
from asyncbg.auth.keys import Keys
from asyncbg.auth.origin import is_loopback
from asyncbg.auth.sessions import Sessions
from asyncbg.core.clock import Clock, rfc3339
from asyncbg.core.supervisor import Supervisor
from asyncbg.engine.maintenance import every
from asyncbg.errors import SettingsError
from asyncbg.privacy.log_redaction import redact_handlers
from asyncbg.service import version
from asyncbg.service.auth_middleware import AuthMiddleware, document_authentication
from asyncbg.service.docs_page import install_docs
from asyncbg.service.integrations.activity import Activity
from asyncbg.service.integrations.attachments import Attachments
from asyncbg.service.integrations.imports import Imports
from asyncbg.service.integrations.mailer import Mailer
from asyncbg.service.integrations.notices import Notices
from asyncbg.service.integrations.outbound import Outbound
from asyncbg.service.integrations.private_directory import warn_if_readable
from asyncbg.service.integrations.workspace import Workspace
from asyncbg.service.sign_in import sign_in_router
from asyncbg.service.workflows.activity import activity_workflow
from asyncbg.service.workflows.csv_import import CsvFailed, CsvImported, csv_import_workflow
from asyncbg.service.workflows.email import EmailSent, email_workflow
from asyncbg.service.workflows.external_fetch import WebhookAttempted, WebhookDelivered, external_fetch_workflow
from asyncbg.service.workflows.injected import LogNotifier, MailNotifier, Notifier, injected_workflow
from asyncbg.service.workflows.notification import notification_workflow
from asyncbg.service.workflows.process import process_workflow
from asyncbg.service.workflows.safe_task import safe_task_workflow
from asyncbg.service.workflows.tracked_task import tracked_task_workflow
from asyncbg.service.workflows.unfinished import needed_uploads, unfinished_batches
from asyncbg.settings import SmtpSettings, load_engine_settings
from asyncbg.web.access_log import redact_client, redact_path
from asyncbg.web.event_schema import share_event_schemas
from asyncbg.web.headers import ServiceApp
from asyncbg.web.path_redaction import PathRedactor, SpanMiddleware
from asyncbg.web.problem_route import ProblemRoute, get_and_head
from asyncbg.web.problems import install_problems

logger = logging.getLogger("asyncbg")

_DESCRIPTION = """\
Background jobs over HTTP: every accepted request is on disk before its answer leaves, can be watched live
(`GET /events`, server-sent events), cancelled and retried.
"""
_EXPECTED_ERROR = re.compile(r"\ATraceback .*^asyncbg\.[\w.]+Error: ([^\n]*)\s*\Z", re.DOTALL | re.MULTILINE)
_REVOCATION_CHECK_S = 0.2
_ATTACHMENT_CHECK_S = 3_600.0
_DAY_MS = 86_400_000
_SECURITY_TXT_DAYS = 30
_TAGS = [
    {"name": "workflows", "description": "The workflows of this service: each response lists the accepted jobs."},
    {"name": "jobs", "description": "Submit, list, watch, cancel and retry jobs."},
    {"name": "events", "description": "Job events as server-sent events."},
    {"name": "operations", "description": "Health, metrics, start page."},
]


_EVENTS = (EmailSent, CsvImported, CsvFailed, WebhookAttempted, WebhookDelivered)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the service's application with all routes and tasks; settings come from ``ASYNCBG_*`` unless given.

    Raises SettingsError. Files and connections are opened when the application starts.
    """
    settings = settings or load_engine_settings()
    service = _Service.build(settings)
    authenticator = _authenticator(settings, service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logging.getLogger("uvicorn.error").addFilter(_shorten_startup_error)
        _redact_logs(settings)
        async with service.outbound, service.bg.lifespan(app):
            await service.check_directory()
            await require_authentication(settings, service.keys)
            async with _repeating_chores(service, authenticator):
                yield

    app = ServiceApp(
        docs_url=None,
        redoc_url=None,
        title="asyncbg",
        version=version(),
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        license_info={"name": "MIT", "identifier": "MIT"},
    )
    app.add_middleware(SpanMiddleware, paths=PathRedactor((service.bg.router.unguarded, *service.routers)))
    install_problems(app)
    app.add_middleware(AuthMiddleware, authenticator=authenticator, audit=service.bg._audit)
    app.include_router(sign_in_router(authenticator, service.bg._audit, clock=service.bg.clock))
    install_docs(app)
    app.include_router(_security_txt_router(settings.server.security_contact, clock=service.bg.clock))
    app.include_router(service.bg.router.unguarded)
    for router in service.routers:
        app.include_router(router)
    share_event_schemas(app, service.bg._event_schemas)
    document_authentication(app)
    return app


async def require_authentication(settings: Settings, keys: Keys) -> None:
    """Refuse to listen on a non-loopback address without authentication. Raises SettingsError."""
    auth, host = settings.auth, settings.server.host
    if auth.allow_anonymous:
        if not is_loopback(host):
            logger.warning("listening on %s without authentication: ASYNCBG_AUTH__ALLOW_ANONYMOUS is set", host)
    elif not await keys.exist():
        if not is_loopback(host):
            raise SettingsError(
                f"{host} is not a loopback address and there is no API key: create one (asyncbg keys create NAME), "
                "set ASYNCBG_AUTH__API_KEYS, or allow anonymous access with ASYNCBG_AUTH__ALLOW_ANONYMOUS=true"
            )
        if auth.allow_anonymous is False:
            logger.warning("there is no API key, so every request is refused; create one: asyncbg keys create NAME")


@asynccontextmanager
async def _repeating_chores(service: "_Service", authenticator: Authenticator) -> AsyncIterator[None]:
    """Remove old attachments, and close the streams of revoked keys, ended sessions and callers that now need a key."""
    bg = service.bg

    async def close_revoked() -> None:
        if bg._streams.are_open and bg._streams.close_unauthorized(await authenticator.load_valid()):
            authenticator.clear_cache()  # a cached caller must not reconnect after its stream was closed

    supervisor = Supervisor()
    for period_s, chore, name in (
        (_REVOCATION_CHECK_S, close_revoked, "revocation check"),
        (_ATTACHMENT_CHECK_S, service.attachments.remove_old, "removal of old attachments"),
    ):
        supervisor.start(name.replace(" ", "-"), partial(every, period_s, chore, name=name, errors=bg._parts.errors))
    try:
        yield
    finally:
        await supervisor.stop()


async def run_worker(settings: Settings) -> None:
    """Run the service's jobs and serve no HTTP, until SIGTERM or SIGINT."""
    service = _Service.build(settings)
    _redact_logs(settings)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with service.outbound, service.bg:
            await service.check_directory()
            logger.info("worker started; stop it with SIGTERM or Ctrl-C")
            async for number in signals:
                logger.info("%s: running jobs have %g s to finish", number.name, settings.runner.shutdown_grace_s)
                for second in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(second, signal.SIG_DFL)  # ends the process at once
                return


def service_engine(settings: Settings) -> AsyncBG:
    """Return the engine with the service's tasks, not started, to validate a submission. Opens nothing."""
    return _Service.build(settings).bg


@dataclass(frozen=True, slots=True)
class _Service:
    """The engine with the service's tasks, the parts they use and their routes."""

    bg: AsyncBG
    outbound: Outbound
    attachments: Attachments
    keys: Keys
    sessions: Sessions
    routers: tuple[APIRouter, ...]

    @classmethod
    def build(cls, settings: Settings) -> "_Service":
        """Create all parts and inject their dependencies. Opens nothing."""
        bg = AsyncBG(settings, events=_EVENTS)
        clock, data_dir = bg.clock, settings.data_dir
        outbound = Outbound(settings.outbound, clock=clock)
        mailer = Mailer(settings.smtp, clock=clock)
        notices = Notices(data_dir)
        workspace = Workspace(data_dir, clock=clock, find_open=partial(unfinished_batches, bg.backend))
        activity = Activity(bg._parts.database, clock=clock)
        imports = Imports(
            bg._parts.database, data_dir, settings.upload, clock=clock, find_needed=partial(needed_uploads, bg.backend)
        )
        attachments = Attachments(data_dir, min_free_bytes=settings.upload.min_free_bytes, clock=clock)
        routers = (
            notification_workflow(bg, notices=notices),
            process_workflow(bg, workspace=workspace, settings=settings.demo),
            email_workflow(bg, mailer=mailer, files=attachments),
            csv_import_workflow(bg, imports=imports, notices=notices, settings=settings.upload),
            activity_workflow(bg, activity=activity),
            external_fetch_workflow(bg, outbound=outbound, settings=settings.outbound),
            safe_task_workflow(bg, notices=notices, workspace=workspace),
            tracked_task_workflow(bg, settings=settings.demo),
            injected_workflow(bg, notifier=_notifier(settings.smtp, mailer, notices), activity=activity),
        )
        keys = Keys(bg._parts.database, settings.auth, clock=clock)
        sessions = Sessions(bg._parts.database, lifetime_s=settings.auth.session_s, clock=clock)
        bg._store_openers += [store.open for store in (activity, imports, attachments, keys, sessions)]
        return cls(bg, outbound, attachments, keys, sessions, routers)

    async def check_directory(self) -> None:
        """Warn where others may read what the service keeps."""
        await anyio.to_thread.run_sync(warn_if_readable, self.bg.settings.data_dir)


def _notifier(smtp: SmtpSettings, mailer: Mailer, notices: Notices) -> Notifier:
    """Return a notifier by mail if a mail server and a sender are configured, else by the notification log."""
    _, address = parseaddr(smtp.sender)
    try:
        validate_email(address, check_deliverability=False, test_environment=True)
    except EmailNotValidError:
        return LogNotifier(notices)
    return LogNotifier(notices) if smtp == SmtpSettings() else MailNotifier(mailer, address)


def _authenticator(settings: Settings, service: _Service) -> Authenticator:
    allow_anonymous = settings.auth.allow_anonymous
    return Authenticator(service.keys, service.sessions, service.bg._tickets, allow_anonymous=allow_anonymous)


def _redact_logs(settings: Settings) -> None:
    """Remove line breaks from server logs, and personal data unless ``privacy.mask`` is off."""
    logging.getLogger("uvicorn.access").addFilter(redact_client)
    if settings.privacy.mask:
        logging.getLogger("uvicorn.access").addFilter(redact_path)
    redact_handlers(mask=settings.privacy.mask)


def _shorten_startup_error(record: logging.LogRecord) -> bool:
    """Replace the traceback of an expected startup error by its message."""
    expected = _EXPECTED_ERROR.search(record.getMessage()) if record.levelno == logging.ERROR else None
    if expected is not None:
        record.msg, record.args = f"cannot start: {expected[1]}", None
    return True


def _security_txt_router(contact: str | None, *, clock: Clock) -> APIRouter:
    """Return the route of ``/.well-known/security.txt`` (RFC 9116), which answers 404 without a contact.

    ``Expires`` is thirty days after the day of the request, so it never passes while the service runs (section 2.5.5
    recommends less than a year).
    """
    router = APIRouter(route_class=ProblemRoute)

    @get_and_head(router, "/.well-known/security.txt", include_in_schema=False)
    @requires(Access.OPEN)
    async def show_security_txt() -> PlainTextResponse:
        """Return the contact and the expiry date, the two required fields."""
        if contact is None:
            raise HTTPException(
                404, "no security contact is configured; the operator sets ASYNCBG_SERVER__SECURITY_CONTACT"
            )
        now_ms = clock.now_ms()
        expires = rfc3339(now_ms - now_ms % _DAY_MS + _SECURITY_TXT_DAYS * _DAY_MS)
        text = f"Contact: {contact}\nExpires: {expires}\nPreferred-Languages: en\n"
        return PlainTextResponse(text, headers={"Cache-Control": "max-age=86400"})

    return router
