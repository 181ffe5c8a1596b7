"""Settings: what wins over what, what is refused, and what is never shown."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from asyncbg.errors import SettingsError
from asyncbg.settings import ServerSettings, Settings, SmtpSettings, load_settings, setting_sources

SHIPPED = Path(__file__).parents[2] / "settings"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to start from, and no ASYNCBG_ variable."""
    for name in [name for name in os.environ if name.upper().startswith("ASYNCBG_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def profile(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes a profile file and asks for it."""

    def write(text: str) -> None:
        (place / "settings").mkdir(exist_ok=True)
        (place / "settings" / "mine.toml").write_text(text)
        monkeypatch.setenv("ASYNCBG_PROFILE", "mine")

    return write


@pytest.fixture
def secrets(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A secrets directory that is asked for."""
    directory = place / "secrets"
    directory.mkdir()
    monkeypatch.setenv("ASYNCBG_SECRETS_DIR", str(directory))
    return directory


def refusal(**overrides: object) -> str:
    """The one line that stops the start."""
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__cause__ is None
    return line


def origin_of(name: str, **overrides: object) -> str:
    """Where a setting's value comes from."""
    return next(setting.origin for setting in setting_sources(**overrides) if setting.name == name)


def test_nothing_has_to_be_set() -> None:
    """With no file and no variable every setting has its default."""
    settings = load_settings()

    assert settings.database_url == "sqlite:///asyncbg.db"
    assert settings.data_dir == Path("asyncbg-data")
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert {setting.origin for setting in setting_sources()} == {"default"}


def test_each_place_wins_over_the_ones_after_it(
    place: Path, profile: Callable[[str], None], secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments win over the environment, .env, the secrets directory, the profile file and the defaults."""
    assert load_settings().server.port == 8000
    profile("[server]\nport = 1")
    assert load_settings().server.port == 1
    assert origin_of("server.port") == str(Path("settings") / "mine.toml")
    (secrets / "asyncbg_server__port").write_text("2\n")
    assert load_settings().server.port == 2
    assert origin_of("server.port") == "secrets file"
    (place / ".env").write_text("ASYNCBG_SERVER__PORT=3\n")
    assert load_settings().server.port == 3
    assert origin_of("server.port") == ".env"
    monkeypatch.setenv("ASYNCBG_SERVER__PORT", "4")
    assert load_settings().server.port == 4
    assert origin_of("server.port") == "environment ASYNCBG_SERVER__PORT"
    assert load_settings(server={"port": 5}).server.port == 5
    assert origin_of("server.port", server={"port": 5}) == "argument"


def test_places_are_merged_setting_by_setting(profile: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting one value of a section leaves its neighbours to weaker places."""
    profile('[smtp]\nhost = "mail.example"\nport = 25')
    monkeypatch.setenv("ASYNCBG_SMTP__PORT", "2525")

    smtp = load_settings(smtp={"timeout_s": 3}).smtp

    assert (smtp.host, smtp.port, smtp.timeout_s) == ("mail.example", 2525, 3.0)


def test_a_section_given_as_an_object_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section object passed as an argument is used as it is."""
    monkeypatch.setenv("ASYNCBG_SERVER__PORT", "4")

    assert load_settings(server=ServerSettings(host="localhost")).server.port == 8000


def test_a_section_may_come_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """One variable may hold a whole section as JSON; a variable of its own is stronger."""
    monkeypatch.setenv("ASYNCBG_SERVER", '{"host": "localhost", "port": 1}')
    monkeypatch.setenv("ASYNCBG_SERVER__PORT", "2")

    assert load_settings().server == ServerSettings(host="localhost", port=2)


def test_settings_read_the_environment_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Settings()`` reads the same places as ``load_settings()``."""
    monkeypatch.setenv("asyncbg_server__port", "77")

    assert Settings() == load_settings()
    assert Settings().server.port == 77


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ASYNCBG_SMTP__HOTS", "x", "ASYNCBG_SMTP__HOST"),
        ("ASYNCBG_DATABSE_URL", "x", "ASYNCBG_DATABASE_URL"),
        ("ASYNCBG_SERVER_PORT", "1", "ASYNCBG_SERVER__PORT"),
        ("ASYNCBG_PORT", "1", "ASYNCBG_SERVER__PORT"),
        ("asyncbg_runer__threads", "1", "ASYNCBG_RUNNER__THREADS"),
    ],
)
def test_a_misspelt_variable_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    """A misspelt variable is named, with the one that was probably meant."""
    monkeypatch.setenv(name, value)

    line = refusal()

    assert line.startswith(f"{name.upper()} (environment): no such setting; did you mean ")
    assert expected in line


def test_a_misspelt_name_is_refused_wherever_it_is(place: Path, profile: Callable[[str], None], secrets: Path) -> None:
    """.env, the secrets directory, the profile file and arguments are checked like the environment."""
    assert "ASYNCBG_SERVR (argument)" in refusal(servr={})
    profile("[server]\nprot = 1")
    assert refusal().startswith(
        "ASYNCBG_SERVER__PROT (settings/mine.toml): no such setting; did you mean ASYNCBG_SERVER__"
    )
    (secrets / "ASYNCBG_SMTP__PASWORD").write_text("hunter2-canary7f3a")
    assert refusal().startswith("ASYNCBG_SMTP__PASWORD (secrets file): ")
    assert refusal().endswith("did you mean ASYNCBG_SMTP__PASSWORD? Correct or remove it")
    (place / ".env").write_text("ASYNCBG_SMTP__PASWORD=hunter2-canary7f3a\n")
    assert "canary7f3a" not in refusal()
    assert "(.env)" in refusal()


def test_other_peoples_names_are_left_alone(place: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names that begin with ASYNCBG_ are ours; those Kubernetes sets for a service called asyncbg are not."""
    (place / ".env").write_text("DJANGO_DEBUG=1\nnonsense here\n")
    (secrets / "tls.key").write_text("x")
    for name, value in {
        "ASYNCBG_SERVICE_HOST": "10.0.0.1",
        "ASYNCBG_SERVICE_PORT_HTTP": "80",
        "ASYNCBG_PORT": "tcp://10.0.0.1:80",
        "ASYNCBG_PORT_80_TCP_ADDR": "10.0.0.1",
        "ASYNCBG_API_SERVICE_HOST": "10.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)

    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SERVER__PORT", "99999", "less than or equal to 65535"),
        ("SERVER__PORT", "", "integer"),
        ("SERVER__HOST", "http://x", "bare host name"),
        ("RUNNER__THREADS", "many", "integer"),
        ("RUNNER__LEASE_S", "0", "greater than 0"),
        ("RUNNER__LEASE_S", "nan", "finite"),
        ("RUNNER__CONCURRENCY", "0", "greater than or equal to 1"),
        ("SMTP__SECURITY", "ssl", "'starttls', 'tls' or 'none'"),
        ("SMTP__SENDER", "nobody", "should be an address"),
        ("SMTP__CA_FILE", "no-such.pem", "file"),
        ("OUTBOUND__ALLOW_HOSTS", '["a"', "not valid JSON"),
        ("OUTBOUND__ALLOW_PRIVATE", "maybe", "boolean"),
        ("OUTBOUND__WEBHOOK_SECRET", "", "at least 1"),
        ("AUTH__API_KEYS", "alice", "not valid JSON"),
        ("DATABASE_URL", "mysql://u:hunter2-canary7f3a@h/db", "postgresql://user@host/name"),
        ("DATABASE_URL", "sqlite://file.db", "sqlite:///file.db"),
        ("DATABASE_URL", "sqlite:///", "names no file"),
        ("DATABASE_URL", "postgresql://u:hunter2-canary7f3a@h:port/db", "port"),
        ("DATABASE_URL", "postgresql://", "names no host"),
        ("DATABASE_URL", "", "no known kind"),
        ("DATA_DIR", "", "path"),
        ("PROFILE", "../etc/passwd", "pattern"),
    ],
)
def test_a_malformed_value_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str) -> None:
    """A malformed value is named by its variable, with what is wrong and what to do, and is not repeated."""
    monkeypatch.setenv(f"ASYNCBG_{name}", value)

    line = refusal()

    assert line.startswith(f"ASYNCBG_{name}")
    assert why in line
    assert "correct it" in line
    assert "canary7f3a" not in line


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///asyncbg.db",
        "sqlite:///some/dir/asyncbg.db",
        "sqlite:////var/lib/asyncbg.db",
        "sqlite:///:memory:",
        "postgresql://user:pw-canary7f3a@db.example:5432/asyncbg?sslmode=require",
        "postgresql:///asyncbg",
    ],
)
def test_the_known_kinds_of_database_url_are_accepted(url: str) -> None:
    """SQLite files, relative and absolute, SQLite in memory and PostgreSQL."""
    assert load_settings(database_url=url).database_url == url


def test_a_profile_that_is_missing_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the file that is not there and the profiles that are."""
    (place / "settings").mkdir()
    (place / "settings" / "production.toml").touch()
    monkeypatch.setenv("ASYNCBG_PROFILE", "prod")

    line = refusal()

    assert line.startswith("ASYNCBG_PROFILE: there is no settings/prod.toml; create it")
    assert "production" in line


def test_a_profile_may_be_asked_for_in_dotenv_or_as_an_argument(place: Path) -> None:
    """Every place stronger than the profile file can choose it."""
    (place / "settings").mkdir()
    for name in ("one", "two"):
        (place / "settings" / f"{name}.toml").write_text(f'data_dir = "{name}"')
    (place / ".env").write_text("ASYNCBG_PROFILE=one\n")

    assert load_settings().data_dir == Path("one")
    assert load_settings(profile="two").data_dir == Path("two")


@pytest.mark.parametrize("text", ["[server", 'profile = "other"', "server = 3"])
def test_a_malformed_profile_file_is_named(profile: Callable[[str], None], text: str) -> None:
    """What is wrong with a profile file is one line that names the file."""
    profile(text)

    assert "settings/mine.toml" in refusal()


def test_a_malformed_line_of_dotenv_is_named(place: Path) -> None:
    """A line that should set something and does not stops the start."""
    (place / ".env").write_text("A=1\nASYNCBG_SERVER__PORT 8001\n")
    assert ".env line 2" in refusal()
    (place / ".env").write_text("ASYNCBG_SERVER__PORT\n")
    assert refusal().startswith("ASYNCBG_SERVER__PORT (.env): has no value")


def test_a_secrets_directory_that_is_missing_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for secrets that are not there does not start a service without them."""
    monkeypatch.setenv("ASYNCBG_SECRETS_DIR", str(place / "nowhere"))

    assert refusal().startswith("ASYNCBG_SECRETS_DIR names no directory")


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is in no repr, no shown setting, and no error about another setting."""
    secret = "hunter2-canary7f3a"
    keys = [{"name": "alice", "hash": secret, "scopes": ["read"]}]
    monkeypatch.setenv("ASYNCBG_SMTP__USERNAME", "mailer")
    monkeypatch.setenv("ASYNCBG_SMTP__PASSWORD", secret)
    monkeypatch.setenv("ASYNCBG_OUTBOUND__WEBHOOK_SECRET", secret)
    monkeypatch.setenv("ASYNCBG_PRIVACY__PSEUDONYM_KEY", secret)
    monkeypatch.setenv("ASYNCBG_AUTH__API_KEYS", json.dumps(keys))
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", f"postgresql://u:{secret}@h/db?password={secret}")

    settings = load_settings()
    shown = setting_sources()

    assert settings.smtp.password is not None
    assert settings.smtp.password.get_secret_value() == secret
    assert settings.auth.api_keys[0].name == "alice"
    for text in (repr(settings), str(settings), repr(shown)):
        assert secret not in text
    values = {setting.name: setting.value for setting in shown}
    assert values["smtp.password"] == "**********"
    assert values["database_url"] == "postgresql://u:**********@h/db?password=**********"
    monkeypatch.setenv("ASYNCBG_SERVER__PORT", "x")
    assert secret not in refusal()


def test_a_secret_that_is_malformed_is_not_repeated() -> None:
    """An error about the secret itself does not tell it, nor a key written where its name should be."""
    assert "canary7f3a" not in refusal(smtp={"username": "u", "password": ["hunter2-canary7f3a"]})
    assert "canary7f3a" not in refusal(auth={"api_keys": [{"name": "a", "hash": "h", "hunter2-canary7f3a": 1}]})
    line = refusal(auth={"api_keys": [{"name": "a b", "hash": "hunter2-canary7f3a"}]})
    assert line.startswith("ASYNCBG_AUTH__API_KEYS[0].name (argument): ")
    assert "canary7f3a" not in line


def test_a_mail_login_needs_both_parts() -> None:
    """A user name without a password, or the other way round, is refused by name."""
    assert "ASYNCBG_SMTP__PASSWORD" in refusal(smtp={"username": "u"})
    assert "ASYNCBG_SMTP__USERNAME" in refusal(smtp={"password": "p"})


def test_two_api_keys_of_one_name_are_refused() -> None:
    """A key's name owns jobs, so it belongs to one key."""
    key = {"name": "alice", "hash": "h"}

    assert refusal(auth={"api_keys": [key, key]}).startswith("ASYNCBG_AUTH__API_KEYS (argument): has two keys")


@pytest.mark.parametrize("text", ['["a.example", "b.example"]', "a.example, b.example", "a.example,b.example,"])
def test_a_list_is_json_or_words_with_commas(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Hosts may be written either way in a variable."""
    monkeypatch.setenv("ASYNCBG_OUTBOUND__ALLOW_HOSTS", text)

    assert load_settings().outbound.allow_hosts == ("a.example", "b.example")


@pytest.mark.parametrize(("text", "delays"), [("1, 5", (1, 5)), ("[0.5]", (0.5,)), ("[]", ()), ("", ())])
def test_a_schedule_is_a_list_of_seconds(monkeypatch: pytest.MonkeyPatch, text: str, delays: tuple[float, ...]) -> None:
    """Written like any list; an empty one means that nothing is tried again."""
    monkeypatch.setenv("ASYNCBG_OUTBOUND__WEBHOOK_SCHEDULE_S", text)

    assert load_settings().outbound.webhook_schedule_s == delays


@pytest.mark.parametrize("text", ["soon", "-1", "[1, null]", "1e9", "nan"])
def test_a_schedule_of_something_else_stops_the_start(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """One line names it."""
    monkeypatch.setenv("ASYNCBG_OUTBOUND__WEBHOOK_SCHEDULE_S", text)

    with pytest.raises(SettingsError, match=r"\AASYNCBG_OUTBOUND__WEBHOOK_SCHEDULE_S.+\Z"):
        load_settings()


def test_settings_do_not_change() -> None:
    """Settings and their sections are frozen."""
    settings = load_settings()

    with pytest.raises(ValidationError):
        settings.data_dir = Path("elsewhere")  # type: ignore[misc]  # that is the point
    with pytest.raises(ValidationError):
        settings.server.port = 1  # type: ignore[misc]  # that is the point


def test_a_section_can_be_made_by_itself() -> None:
    """A section needs no environment: it is what a service is handed in a test."""
    assert SmtpSettings(host="localhost", port=2525, security="none").username is None


def test_the_shipped_default_profile_says_what_the_code_says(place: Path) -> None:
    """settings/default.toml lists every setting that has a default value, with that value."""
    (place / "settings").symlink_to(SHIPPED)

    assert load_settings() == load_settings(profile="default")
    left = [setting for setting in setting_sources() if setting.origin == "default" and setting.name != "profile"]
    assert [setting.name for setting in left if setting.value is not None] == []
    with_file = {setting.name: setting.value for setting in setting_sources()}
    (place / "settings").unlink()
    assert with_file == {setting.name: setting.value for setting in setting_sources()}


@pytest.mark.parametrize("name", sorted(file.stem for file in SHIPPED.glob("*.toml")))
def test_every_shipped_profile_loads(place: Path, name: str) -> None:
    """The profiles in settings/ hold nothing unknown or malformed."""
    (place / "settings").symlink_to(SHIPPED)

    assert load_settings(profile=name).profile == name


def test_the_example_dotenv_names_every_setting_and_no_other(place: Path) -> None:
    """settings/.env.example with every line switched on is a valid .env that sets everything to its default."""
    text = (SHIPPED / ".env.example").read_text()
    named = re.findall(r"^#(ASYNCBG_\w+)=", text, re.MULTILINE)
    assert sorted(named) == sorted([setting.variable for setting in setting_sources()] + ["ASYNCBG_SECRETS_DIR"])
    switched_on = re.sub(r"^#(?=ASYNCBG_\w+=.)(?!ASYNCBG_SECRETS_DIR)", "", text, flags=re.MULTILINE)
    (place / ".env").write_text(switched_on)

    assert load_settings() == load_settings(profile="default")
    assert load_settings().model_dump() == Settings.model_construct().model_dump()
