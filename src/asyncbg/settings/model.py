"""All settings: each with its default, its bounds and its description; pydantic-settings reads them from our layers."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from asyncbg.privacy.encryption import read_key
from asyncbg.settings.schema import Section, schema_of
from asyncbg.settings.sources import layers
from asyncbg.settings.value import (
    DAY_S,
    MIB,
    Charset,
    Contact,
    DatabaseUrl,
    Delay,
    Delimiter,
    EhloName,
    Host,
    Port,
    ProfileName,
    Secret,
    Sender,
    Text,
    decoded,
    listed,
    ring,
)


class ServerSettings(Section):
    """Where ``asyncbg serve`` listens."""

    host: Host = "127.0.0.1"
    port: Port = Field(default=8000, description="0 picks a free port")
    log_format: Literal["text", "json"] = Field(default="text", description="how a log line is written")
    security_contact: Contact | None = Field(
        default=None, description="named in `/.well-known/security.txt`; not set: there is none"
    )


class RunnerSettings(Section):
    """How jobs are run."""

    concurrency: int = Field(default=100, ge=1, le=100_000, description="jobs running at once in a process")
    threads: int = Field(default=16, ge=1, le=1_000, description="threads for tasks that are plain functions")
    lease_s: float = Field(default=30.0, gt=0, le=DAY_S, description="a silent worker loses its job after so long")
    shutdown_grace_s: float = Field(default=10.0, ge=0, le=3_600, description="how long a stop waits for running jobs")
    cancel_grace_s: float = Field(
        default=5.0, ge=0, le=3_600, description="how long a job may take to end once it was told to stop"
    )
    max_queued: int = Field(default=100_000, ge=1, le=1_000_000_000, description="more unfinished jobs are refused")
    max_queued_per_owner: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="more unfinished jobs of one owner are refused"
    )
    retention_s: float = Field(default=7 * DAY_S, gt=0, le=3_660 * DAY_S, description="final jobs are kept so long")
    watchdog_s: float = Field(
        default=0.25, ge=0, le=3_600, description="the event loop held for longer is reported; 0 turns the watchdog off"
    )


class JobSettings(Section):
    """How large what is stored with a job may be."""

    max_args_bytes: int = Field(
        default=MIB,
        ge=1,
        le=256 * MIB,
        description="larger arguments of a job, as JSON, are refused when they are given",
    )
    max_result_bytes: int = Field(
        default=MIB, ge=1, le=256 * MIB, description="a job whose result is larger, as JSON, fails"
    )
    tracebacks: bool = Field(
        default=True, description="those of failed attempts are kept on the job, masked, for who may read it"
    )


class StreamSettings(Section):
    """How events are streamed."""

    heartbeat_s: float = Field(default=15.0, gt=0, le=3_600, description="an idle stream gets a comment this often")
    retry_ms: int = Field(default=2_000, ge=1, le=600_000, description="a client reconnects after so long")
    max_age_s: float = Field(default=3_600.0, gt=0, le=DAY_S, description="then a client is told to come back")
    progress_per_s: float = Field(default=10.0, gt=0, le=1_000, description="for one job and stream, at most")
    buffer: int = Field(default=1_000, ge=1, le=1_000_000, description="events held for a slow subscriber")
    max_subscribers: int = Field(default=5_000, ge=1, le=1_000_000, description="streams open at once in a process")


class SmtpSettings(Section):
    """The mail server that takes our messages."""

    host: Host = "localhost"
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: Text | None = None
    password: Secret | None = None
    sender: Sender = "asyncbg@localhost"
    timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="of each step; sixty times that, to 600, after the final dot"
    )
    ca_file: FilePath | None = Field(default=None, description="PEM file to trust instead of the system's store")
    ehlo: EhloName | None = Field(
        default=None, description="the qualified name EHLO says; not set: the address of our end of the connection"
    )
    schedule_s: Annotated[tuple[Delay, ...], Field(max_length=100), BeforeValidator(listed)] = Field(
        default=(60, 300, 900, 3_600, 7_200, 14_400, 28_800, 57_600, 57_600),
        description="how long after a failed attempt the next one follows: two days in all",
    )
    allow_special_use: bool = Field(
        default=False, description="send to special-use names too: .local, home.arpa, localhost"
    )

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        """A user name and a password come together."""
        if (self.username is None) != (self.password is None):
            missing = "PASSWORD" if self.password is None else "USERNAME"
            raise ValueError(f"a login needs both: set ASYNCBG_SMTP__{missing} too, or neither")
        return self


class OutboundSettings(Section):
    """Whom our HTTP requests may reach, and how much may come back."""

    allow_hosts: Annotated[tuple[Host, ...], BeforeValidator(listed)] = Field(
        default=(), description="JSON list or words with commas between; empty: every public host"
    )
    allow_private: bool = Field(default=False, description="reach loopback and private addresses too")
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    max_bytes: int = Field(default=10 * MIB, ge=1, le=1024 * MIB, description="of a decoded response")
    webhook_secret: Secret | None = Field(
        default=None, description="signs the webhooks we send; two while they rotate, the new one first"
    )
    webhook_schedule_s: Annotated[tuple[Delay, ...], Field(max_length=100), BeforeValidator(listed)] = Field(
        default=(1, 5, 30, 300, 1_800, 7_200, 18_000, 36_000, 50_400),
        description="how long after a failed delivery the next one follows",
    )


class UploadSettings(Section):
    """How large an upload may be."""

    max_bytes: int = Field(default=256 * MIB, ge=1, le=1024 * 1024 * MIB)
    max_rows: int = Field(default=5_000_000, ge=1, le=1_000_000_000)
    min_free_bytes: int = Field(
        default=64 * MIB, ge=0, le=1024 * 1024 * MIB, description="an upload leaves so much of the disk free"
    )
    encoding: Charset | None = Field(
        default=None, description="of CSV files without byte order mark and declared charset; not set: it is guessed"
    )
    delimiter: Delimiter | None = Field(
        default=None, description="a character or `tab`, of CSV files without a line `sep=`; not set: it is guessed"
    )


class ApiKey(Section):
    """One caller: its name owns what it submits; only a hash of its key is kept."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    hash: Secret
    scopes: tuple[Literal["submit", "read", "admin"], ...] = ("submit", "read")


def _distinct(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
    """No two keys of the same name: a name is an owner."""
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("has two keys of the same name; give each its own")
    return keys


class AuthSettings(Section):
    """Who may call."""

    api_keys: Annotated[tuple[ApiKey, ...], BeforeValidator(decoded), AfterValidator(_distinct)] = Field(
        default=(), description="JSON list of objects with name, hash and scopes"
    )
    allow_anonymous: bool | None = Field(
        default=None, description="let callers without a key in; not set: from this machine, while no key exists"
    )
    pepper: Secret | None = Field(default=None, description="goes into the hash of every key; a change ends all keys")
    session_s: float = Field(default=43_200.0, gt=0, le=30 * DAY_S, description="how long a browser stays signed in")


class PrivacySettings(Section):
    """What of a person is shown."""

    mask: bool = Field(default=True, description="show pseudonyms in logs; answers show them either way")
    redact_logs: bool = Field(
        default=False, description="in an application of your own: redact what all of its handlers log"
    )
    pseudonym_key: Secret | None = Field(default=None, description="keeps pseudonyms the same across processes")
    encryption_keys: Annotated[tuple[Secret, ...], BeforeValidator(listed), AfterValidator(ring)] = Field(
        default=(), description="32 bytes each, base64 or hex: the first encrypts what is stored, every one decrypts it"
    )

    def keys(self) -> tuple[bytes, ...]:
        """The encryption keys themselves."""
        return tuple(read_key(key.get_secret_value()) for key in self.encryption_keys)


class DemoSettings(Section):
    """How long the demonstration tasks take."""

    step_s: float = Field(default=1.0, ge=0, le=3_600, description="one unit; the two slow tasks take 2 and 3")
    item_s: float = Field(default=0.5, ge=0, le=3_600, description="one item of the long-running task")


class Settings(BaseSettings):
    """Everything that can be set. Use ``load_settings`` for one-line errors; sections flow down, never the whole."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    profile: ProfileName = "default"
    database_url: DatabaseUrl = Field(default="sqlite:///asyncbg.db", repr=False)
    data_dir: Annotated[Path, BeforeValidator(lambda value: value or None)] = Path("asyncbg-data")
    server: ServerSettings = ServerSettings()
    runner: RunnerSettings = RunnerSettings()
    jobs: JobSettings = JobSettings()
    stream: StreamSettings = StreamSettings()
    smtp: SmtpSettings = SmtpSettings()
    outbound: OutboundSettings = OutboundSettings()
    upload: UploadSettings = UploadSettings()
    auth: AuthSettings = AuthSettings()
    privacy: PrivacySettings = PrivacySettings()
    demo: DemoSettings = DemoSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read layers, which refuse unknown names and know the origin of each value; pydantic-settings has neither."""
        found = layers(init_settings(), schema_of(settings_cls))
        return tuple(InitSettingsSource(settings_cls, init_kwargs=layer.values) for layer in found)
