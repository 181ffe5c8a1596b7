"""What can be set, its bounds and defaults, and where a value comes from.

Precedence: arguments > environment > ``.env`` > secrets directory > profile file > the defaults below.
A setting's variable is ``ASYNCBG_`` and its path in upper case, joined by ``__``: ``server.port`` is
``ASYNCBG_SERVER__PORT``.
"""

import difflib
import functools
import io
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from asyncbg.errors import SettingsError
from asyncbg.seal import read_key

_PREFIX = "ASYNCBG_"
_DELIMITER = "__"
_HIDDEN = "**********"
_SECRETS_DIR = "ASYNCBG_SECRETS_DIR"
_SECRETS_DIR_DEFAULT = Path("/run/secrets")
_PROFILE_DIR = Path("settings")
_PROFILE_NAME = r"^[A-Za-z0-9_-]{1,64}$"
_DAY_S = 86_400.0
_MIB = 1024 * 1024
# Kubernetes tells a pod of every service by such variables; a service called asyncbg must not stop the start.
_SERVICE_LINK = re.compile(r"ASYNCBG_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")

_Leaf = tuple[str, ...]


def _listed(value: object) -> object:
    """A list in a variable: JSON (``["a", "b"]``) or words with commas between (``a, b``)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _decoded(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def _decoded(value: object) -> object:
    """JSON text as what it stands for; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not valid JSON") from None


def _database_url(url: str) -> str:
    """Accept ``sqlite:///relative``, ``sqlite:////absolute``, ``sqlite:///:memory:`` and ``postgresql://…``."""
    forms = "use sqlite:///file.db, sqlite:////absolute/file.db, sqlite:///:memory: or postgresql://user@host/name"
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"has a blank or a control character in it; {forms}")
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        if not path.strip("/") or path.endswith("/") or set(path) & set("?#"):
            raise ValueError(f"names no file; {forms}")
        return url
    if not url.startswith("postgresql://"):
        raise ValueError(f"is of no known kind; {forms}")
    try:
        parts = urlsplit(url)
        named = parts.hostname or parts.path.strip("/")
        _ = parts.port
    except ValueError:
        named = None
    if not named:
        raise ValueError(f"names no host or database, or a malformed port; {forms}")
    return url


def _host(host: str) -> str:
    """A host name or address: nothing of a URL around it."""
    if set(host) & set(" /@\t\r\n"):
        raise ValueError("should be a bare host name or address, without scheme, path or blanks")
    return host


def _sender(address: str) -> str:
    """``user@host`` or ``Name <user@host>``, on one line."""
    if not re.fullmatch(r"(?:[^<>\r\n]*<)?[^\s<>@]+@[^\s<>@]+>?", address) or address.count("<") != address.count(">"):
        raise ValueError("should be an address like asyncbg@example.com or Name <asyncbg@example.com>")
    return address


def _contact(uri: str) -> str:
    """Whom to tell of a hole: a URI of RFC 9116, 2.5.3, on one line."""
    if not re.fullmatch(r"(mailto:[^\s@]+@[^\s@]+|https://[^\s/]+\S*|tel:\+?[0-9.()-]+)", uri):
        raise ValueError("should be mailto:security@example.com, https://… or tel:+1-202-555-0143")
    return uri


def _distinct(keys: "tuple[ApiKey, ...]") -> "tuple[ApiKey, ...]":
    """No two keys of the same name: a name is an owner."""
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("has two keys of the same name; give each its own")
    return keys


def _ring(keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Every key is one, and none stands twice."""
    if len({read_key(key.get_secret_value()) for key in keys}) != len(keys):
        raise ValueError("has a key twice; give each once, the one that encrypts first")
    return keys


Text = Annotated[str, Field(min_length=1)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Host = Annotated[Text, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Delay = Annotated[float, Field(ge=0, le=30 * _DAY_S)]


class _Section(BaseModel):
    """The manners every section shares."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class ServerSettings(_Section):
    """Where ``asyncbg serve`` listens."""

    host: Host = "127.0.0.1"
    port: Port = Field(default=8000, description="0 picks a free port")
    log_format: Literal["text", "json"] = Field(default="text", description="how a log line is written")
    security_contact: Annotated[Text, AfterValidator(_contact)] | None = Field(
        default=None, description="named in `/.well-known/security.txt`; not set: there is none"
    )


class RunnerSettings(_Section):
    """How jobs are run."""

    concurrency: int = Field(default=100, ge=1, le=100_000, description="jobs running at once in a process")
    threads: int = Field(default=16, ge=1, le=1_000, description="threads for tasks that are plain functions")
    lease_s: float = Field(default=30.0, gt=0, le=_DAY_S, description="a silent worker loses its job after so long")
    shutdown_grace_s: float = Field(default=10.0, ge=0, le=3_600, description="how long a stop waits for running jobs")
    cancel_grace_s: float = Field(
        default=5.0, ge=0, le=3_600, description="how long a job may take to end once it was told to stop"
    )
    max_queued: int = Field(default=100_000, ge=1, le=1_000_000_000, description="more unfinished jobs are refused")
    max_queued_per_owner: int | None = Field(
        default=None, ge=1, le=1_000_000_000, description="more unfinished jobs of one owner are refused"
    )
    retention_s: float = Field(default=7 * _DAY_S, gt=0, le=3_660 * _DAY_S, description="final jobs are kept so long")
    watchdog_s: float = Field(
        default=0.25, ge=0, le=3_600, description="the event loop held for longer is reported; 0 turns the watchdog off"
    )


class StreamSettings(_Section):
    """How events are streamed."""

    heartbeat_s: float = Field(default=15.0, gt=0, le=3_600, description="an idle stream gets a comment this often")
    retry_ms: int = Field(default=2_000, ge=1, le=600_000, description="a client reconnects after so long")
    max_age_s: float = Field(default=3_600.0, gt=0, le=_DAY_S, description="then a client is told to come back")
    progress_per_s: float = Field(default=10.0, gt=0, le=1_000, description="for one job and stream, at most")
    buffer: int = Field(default=1_000, ge=1, le=1_000_000, description="events held for a slow subscriber")
    max_subscribers: int = Field(default=5_000, ge=1, le=1_000_000, description="streams open at once in a process")


class SmtpSettings(_Section):
    """The mail server that takes our messages."""

    host: Host = "localhost"
    port: Port = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: Text | None = None
    password: Secret | None = None
    sender: Annotated[Text, AfterValidator(_sender)] = "asyncbg@localhost"
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    ca_file: FilePath | None = Field(default=None, description="PEM file to trust instead of the system's store")

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        """A user name and a password come together."""
        if (self.username is None) != (self.password is None):
            missing = "PASSWORD" if self.password is None else "USERNAME"
            raise ValueError(f"a login needs both: set ASYNCBG_SMTP__{missing} too, or neither")
        return self


class OutboundSettings(_Section):
    """Whom our HTTP requests may reach, and how much may come back."""

    allow_hosts: Annotated[tuple[Host, ...], BeforeValidator(_listed)] = Field(
        default=(), description="JSON list or words with commas between; empty: every public host"
    )
    allow_private: bool = Field(default=False, description="reach loopback and private addresses too")
    timeout_s: float = Field(default=10.0, gt=0, le=600)
    max_bytes: int = Field(default=10 * _MIB, ge=1, le=1024 * _MIB, description="of a decoded response")
    webhook_secret: Secret | None = Field(
        default=None, description="signs the webhooks we send; two while they rotate, the new one first"
    )
    webhook_schedule_s: Annotated[tuple[Delay, ...], Field(max_length=100), BeforeValidator(_listed)] = Field(
        default=(1, 5, 30, 300, 1_800, 7_200, 18_000, 36_000, 50_400),
        description="how long after a failed delivery the next one follows",
    )


class UploadSettings(_Section):
    """How large an upload may be."""

    max_bytes: int = Field(default=256 * _MIB, ge=1, le=1024 * 1024 * _MIB)
    max_rows: int = Field(default=5_000_000, ge=1, le=1_000_000_000)
    min_free_bytes: int = Field(
        default=64 * _MIB, ge=0, le=1024 * 1024 * _MIB, description="an upload leaves so much of the disk free"
    )


class ApiKey(_Section):
    """One caller: its name owns what it submits; only a hash of its key is kept."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    hash: Secret
    scopes: tuple[Literal["submit", "read", "admin"], ...] = ("submit", "read")


class AuthSettings(_Section):
    """Who may call."""

    api_keys: Annotated[tuple[ApiKey, ...], BeforeValidator(_decoded), AfterValidator(_distinct)] = Field(
        default=(), description="JSON list of objects with name, hash and scopes"
    )
    allow_anonymous: bool | None = Field(
        default=None, description="let callers without a key in; not set: from this machine, while no key exists"
    )
    pepper: Secret | None = Field(default=None, description="goes into the hash of every key; a change ends all keys")
    session_s: float = Field(default=43_200.0, gt=0, le=30 * _DAY_S, description="how long a browser stays signed in")


class PrivacySettings(_Section):
    """What of a person is shown."""

    mask: bool = Field(default=True, description="show pseudonyms in logs; answers show them either way")
    redact_logs: bool = Field(
        default=False,
        description="in an application of your own: redact what all of its handlers log",
    )
    pseudonym_key: Secret | None = Field(default=None, description="keeps pseudonyms the same across processes")
    encryption_keys: Annotated[tuple[Secret, ...], BeforeValidator(_listed), AfterValidator(_ring)] = Field(
        default=(), description="32 bytes each, base64 or hex: the first encrypts what is stored, every one decrypts it"
    )

    def keys(self) -> tuple[bytes, ...]:
        """The encryption keys themselves."""
        return tuple(read_key(key.get_secret_value()) for key in self.encryption_keys)


class DemoSettings(_Section):
    """How long the demonstration tasks take."""

    step_s: float = Field(default=1.0, ge=0, le=3_600, description="one unit; the two slow tasks take 2 and 3")
    item_s: float = Field(default=0.5, ge=0, le=3_600, description="one item of the long-running task")


class Settings(BaseSettings):
    """Everything that can be set. Use ``load_settings`` for one-line errors; sections flow down, never the whole."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    profile: Annotated[str, Field(pattern=_PROFILE_NAME)] = "default"
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(default="sqlite:///asyncbg.db", repr=False)
    data_dir: Annotated[Path, BeforeValidator(lambda value: value or None)] = Path("asyncbg-data")
    server: ServerSettings = ServerSettings()
    runner: RunnerSettings = RunnerSettings()
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
        """Our own sources: they refuse what they do not know, and can say where a value came from."""
        return tuple(_LayerSource(settings_cls, layer) for layer in _layers(init_settings()))


@dataclass(frozen=True, slots=True)
class SettingSource:
    """One setting, its value fit for showing (secrets hidden) and where it came from."""

    name: str
    variable: str
    value: object
    origin: str


def load_settings(**overrides: Any) -> Settings:
    """Read all settings; ``overrides`` are nested: ``load_settings(server={"port": 0})``.

    Raises SettingsError, one line, naming the setting by its variable and what to do about it.
    """
    return _load(overrides)[0]


def setting_sources(**overrides: Any) -> tuple[SettingSource, ...]:
    """Read all settings as ``load_settings`` does, and say for each its value and where it comes from.

    An origin is ``argument``, ``environment ASYNCBG_X``, ``.env``, ``secrets file``, the profile file or ``default``.
    """
    settings, origins = _load(overrides)
    shown = settings.model_dump(mode="json")
    shown["database_url"] = _without_password(settings.database_url)
    return tuple(
        SettingSource(".".join(leaf), _variable(leaf), _at(shown, leaf), _origin(leaf, origins)) for leaf in _leaves()
    )


def _load(overrides: Mapping[str, Any]) -> tuple[Settings, Mapping[_Leaf, str]]:
    """The settings, and the place each one that is not a default came from."""
    origins = {leaf: origin for layer in reversed(_layers(overrides)) for leaf, origin in layer.origins.items()}
    try:
        return Settings(**overrides), origins
    except ValidationError as error:
        raise SettingsError(_one_line(error, origins)) from None


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one place says: values as a tree, and the name of the place for each leaf."""

    values: dict[str, Any]
    origins: dict[_Leaf, str]


class _LayerSource(PydanticBaseSettingsSource):
    """A layer, as pydantic-settings wants it."""

    def __init__(self, settings_cls: type[BaseSettings], layer: _Layer) -> None:
        super().__init__(settings_cls)
        self._layer = layer

    def __call__(self) -> dict[str, Any]:
        return self._layer.values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._layer.values.get(field_name), field_name, False


def _layers(arguments: Mapping[str, Any]) -> list[_Layer]:
    """All places, the strongest first."""
    environment = {name: value for name, value in os.environ.items() if name.upper().startswith(_PREFIX)}
    dotenv = _dotenv()
    layers = [
        _of_tree(arguments, "argument"),
        _of_variables(environment, "environment"),
        _of_variables(dotenv, ".env"),
        _of_variables(_secrets(environment.get(_SECRETS_DIR) or dotenv.get(_SECRETS_DIR)), "secrets file"),
    ]
    profile = next((layer.values["profile"] for layer in layers if "profile" in layer.values), None)
    return [*layers, _profile(profile)]


def _dotenv() -> dict[str, str | None]:
    """Our variables of ``./.env``; the others are somebody else's."""
    path = Path(".env")
    if not path.is_file():
        return {}
    text = _text(path, ".env")
    for binding in parse_stream(io.StringIO(text)):
        if binding.error and _PREFIX in binding.original.string.upper():
            raise SettingsError(f".env line {binding.original.line} is malformed; write it as ASYNCBG_NAME=value")
    return {k: v for k, v in dotenv_values(stream=io.StringIO(text)).items() if k.upper().startswith(_PREFIX)}


def _secrets(asked: str | None) -> dict[str, str]:
    """One file a setting, named like its variable in either case, in the directory asked for or the usual one."""
    directory = Path(asked) if asked else _SECRETS_DIR_DEFAULT
    if asked and not directory.is_dir():
        raise SettingsError(f"{_SECRETS_DIR} names no directory; create it or unset {_SECRETS_DIR}")
    if not directory.is_dir() or not os.access(directory, os.R_OK | os.X_OK):
        return {}
    files = sorted(file for file in directory.iterdir() if file.name.upper().startswith(_PREFIX))
    return {file.name: _text(file, f"the secrets file of {file.name.upper()}").strip() for file in files}


def _profile(asked: object) -> _Layer:
    """``settings/<profile>.toml``; only a profile that was asked for has to be there."""
    name = "default" if asked is None else asked
    if not isinstance(name, str) or not re.fullmatch(_PROFILE_NAME, name):
        return _Layer({}, {})  # the model refuses the name
    path = _PROFILE_DIR / f"{name}.toml"
    if not path.is_file():
        if name == "default":
            return _Layer({}, {})
        there = ", ".join(sorted(file.stem for file in _PROFILE_DIR.glob("*.toml"))) or "none"
        raise SettingsError(f"ASYNCBG_PROFILE: there is no {path}; create it or choose a profile that exists ({there})")
    try:
        tree = tomllib.loads(_text(path, str(path)))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at .*\)", str(error))
        raise SettingsError(f"{path} is not valid TOML {place[0] if place else ''}; correct it there") from None
    if "profile" in tree:
        raise SettingsError(f"ASYNCBG_PROFILE: {path} cannot name the profile; remove it there, set ASYNCBG_PROFILE")
    return _of_tree(tree, str(path))


def _text(path: Path, name: str) -> str:
    """A small file's text, or one line that says why not."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "unreadable").lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name} cannot be read: {why}; correct the file or remove it") from None


def _of_variables(variables: Mapping[str, str | None], origin: str) -> _Layer:
    """A layer out of ``ASYNCBG_SECTION__NAME`` variables; ``ASYNCBG_SECTION`` may hold a JSON object."""
    layer = _Layer({}, {})
    for name in sorted(
        variables, key=lambda name: name.count(_DELIMITER)
    ):  # whole sections first, single values on top
        value, path = variables[name], tuple(name.upper().removeprefix(_PREFIX).lower().split(_DELIMITER))
        if name.upper() == _SECRETS_DIR or _is_service_link(name, value or ""):
            continue
        if path not in _leaves() and path not in _sections():
            raise SettingsError(_unknown(path, origin))
        if value is None:
            raise SettingsError(
                f"{_variable(path)} ({origin}): has no value; write {_variable(path)}=value or remove it"
            )
        _add(layer, path, value if path in _leaves() else _json_object(path, value, origin), origin)
    return layer


def _of_tree(tree: Mapping[str, Any], origin: str) -> _Layer:
    """A layer out of nested tables."""
    layer = _Layer({}, {})
    for name, value in tree.items():
        _add(layer, (name,), value, origin)
    return layer


def _add(layer: _Layer, path: _Leaf, value: Any, origin: str) -> None:
    """Put a value in its place and remember where it came from; refuse a name that is no setting."""
    if path in _sections() and isinstance(value, Mapping):
        for name, inner in value.items():
            _add(layer, (*path, str(name)), inner, origin)
        return
    if path not in _leaves() and path not in _sections():
        raise SettingsError(_unknown(path, origin))
    table = layer.values
    for name in path[:-1]:
        table = table.setdefault(name, {})
    table[path[-1]] = value
    layer.origins.update({leaf: origin for leaf in _leaves() if leaf[: len(path)] == path})


def _json_object(path: _Leaf, value: str, origin: str) -> Mapping[str, Any]:
    """A whole section in one variable."""
    try:
        decoded = json.loads(value)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise SettingsError(
            f"{_variable(path)} ({origin}): is not a JSON object; set {_variable((*path, 'name'))} instead"
        )
    return decoded


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes, not a person, set the variable."""
    known = tuple(name.removeprefix(_PREFIX).lower().split(_DELIMITER)) in _leaves()
    return not known and bool(_SERVICE_LINK.fullmatch(name) or _SERVICE_ADDRESS.fullmatch(value))


@functools.cache
def _leaves() -> Mapping[_Leaf, FieldInfo]:
    """Every setting by its path, in the order of the sections above."""
    leaves: dict[_Leaf, FieldInfo] = {}
    for name, field in Settings.model_fields.items():
        inner = _section_fields(field)
        leaves.update({(name, leaf): f for leaf, f in inner.items()} if inner else {(name,): field})
    return leaves


@functools.cache
def _sections() -> frozenset[_Leaf]:
    """The paths of the sections."""
    return frozenset((name,) for name, field in Settings.model_fields.items() if _section_fields(field))


def _section_fields(field: FieldInfo) -> Mapping[str, FieldInfo]:
    """The fields of a section; none if the field is a single value."""
    kind = field.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, _Section) else {}


def _variable(path: _Leaf) -> str:
    """The environment variable that sets it."""
    return _PREFIX + _DELIMITER.join(path).upper()


def _at(tree: Any, path: _Leaf) -> Any:
    """The value at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _origin(leaf: _Leaf, origins: Mapping[_Leaf, str]) -> str:
    """Where a value came from, in words."""
    origin = origins.get(leaf, "default")
    return f"environment {_variable(leaf)}" if origin == "environment" else origin


def _unknown(path: _Leaf, origin: str) -> str:
    """One line for a name that is no setting, with the one that was probably meant."""
    name = re.sub(r"[^\w.-]", "?", _variable(path))[:100]
    known = [_variable(leaf) for leaf in _leaves()]
    tails = [_variable(leaf) for leaf in _leaves() if leaf[-1] == path[-1]]
    close = (
        difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        or tails[:3]
        or difflib.get_close_matches(name, known, n=1)
    )
    hint = f"did you mean {' or '.join(close)}? Correct" if close else "correct"
    return f"{name} ({origin}): no such setting; {hint} or remove it"


def _one_line(error: ValidationError, origins: Mapping[_Leaf, str]) -> str:
    """The first thing wrong, named by its variable; never the value."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    where = tuple(str(part) for part in details[0]["loc"])
    leaf = next((where[:depth] for depth in (2, 1) if where[:depth] in _leaves()), where[:1])
    inner = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in where[len(leaf) :] if _may_be_named(part))
    origin = next((f" ({origins[known]})" for known in origins if known[: len(leaf)] == leaf), "")
    wrong = details[0]["msg"].removeprefix("Value error, ")
    more = f" ({len(details) - 1} more are wrong)" if len(details) > 1 else ""
    return f"{_variable(leaf)}{inner}{origin}: {wrong[:1].lower()}{wrong[1:]}; correct it or remove it{more}"


def _may_be_named(part: str) -> bool:
    """A key a person wrote may itself be a secret in the wrong place."""
    return part.isdigit() or part in ApiKey.model_fields


def _without_password(url: str) -> str:
    """The URL with the password, in the userinfo or as an option, hidden."""
    url = re.sub(r"(?<=://)([^/@:]*):[^/]*@", rf"\1:{_HIDDEN}@", url)
    return re.sub(r"(?i)([?&]\w*(?:password|secret|token)\w*=)[^&]*", rf"\g<1>{_HIDDEN}", url)
