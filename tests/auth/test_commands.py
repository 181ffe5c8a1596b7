"""Keys by the command line, and a service that would rather not start than be open."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import asyncbg.errors
from tests.unit.test_cli import asyncbg_command

SOURCE = str(Path(asyncbg.errors.__file__).parents[1])


def test_a_key_is_printed_once(tmp_path: Path) -> None:
    """Alone on stdout, for a variable in a script; the list has no key in it."""
    made = asyncbg_command(tmp_path, "keys", "create", "ada")
    key = made.stdout.strip()

    assert made.returncode == 0
    assert re.fullmatch(r"abg_\w{49}", key)
    listed = asyncbg_command(tmp_path, "keys", "list")
    assert key[:12] in listed.stdout
    assert key[12:] not in listed.stdout + made.stderr


def test_keys_are_made_listed_and_revoked_as_json(tmp_path: Path) -> None:
    """With scopes and an end; a name is taken until it is revoked, and every step is in the audit log."""
    made = asyncbg_command(tmp_path, "keys", "create", "ada", "--scopes", "read,admin", "--expires", "30d", "--json")
    taken = asyncbg_command(tmp_path, "keys", "create", "ada")
    [listed] = json.loads(asyncbg_command(tmp_path, "keys", "list", "--json").stdout)["items"]
    revoked = asyncbg_command(tmp_path, "keys", "revoke", "ada", "--json")
    gone = asyncbg_command(tmp_path, "keys", "revoke", "ada")
    log = json.loads(asyncbg_command(tmp_path, "audit", "--json").stdout)["items"]

    shown = json.loads(made.stdout)
    assert shown.pop("key").startswith("abg_")
    assert shown == listed
    assert (listed["name"], listed["scopes"], listed["state"]) == ("ada", ["admin", "read"], "good")
    assert listed["expires_at"] > listed["created_at"]
    assert (taken.returncode, gone.returncode) == (1, 4)
    assert json.loads(revoked.stdout)["state"] == "revoked"
    assert [(one["what"], one["outcome"]) for one in log] == [
        ("key.revoke", "failed"), ("key.revoke", "done"), ("key.create", "failed"), ("key.create", "done"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a b"], "a key's name"),
        (["anonymous"], "a key's name"),
        (["ada", "--scopes", "write"], "--scopes"),
        (["ada", "--expires", "soon"], "--expires"),
        (["ada", "--no-store", "--expires", "1d"], "--expires"),
    ],
)
def test_a_key_that_cannot_be_is_a_usage_error(tmp_path: Path, arguments: list[str], word: str) -> None:
    """One line that names what is wrong; no database is made for it."""
    done = asyncbg_command(tmp_path, "keys", "create", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_lists_need_a_database(tmp_path: Path) -> None:
    """They make none."""
    for command in (["keys", "list"], ["keys", "revoke", "ada"], ["audit"]):
        assert asyncbg_command(tmp_path, *command).returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variables", [{}, {"ASYNCBG_AUTH__ALLOW_ANONYMOUS": "false"}])
def test_an_open_service_does_not_start(tmp_path: Path, variables: dict[str, str]) -> None:
    """On an address that others reach, without a key: one line with the three ways out, and nothing is left behind."""
    done = asyncbg_command(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", **variables)  # noqa: S104 - the point

    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    for remedy in ("asyncbg keys create", "ASYNCBG_AUTH__API_KEYS", "ASYNCBG_AUTH__ALLOW_ANONYMOUS"):
        assert remedy in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["stored", "set", "allowed"])
def test_with_a_key_or_by_permission_it_starts_anywhere(tmp_path: Path, how: str) -> None:
    """A key in the database, a key in the settings, or the word that everybody may come in."""
    made = asyncbg_command(tmp_path, "keys", "create", "ada", "--json", *(["--no-store"] if how == "set" else []))
    shown = json.loads(made.stdout)
    variables = {
        "stored": {},
        "set": {"ASYNCBG_AUTH__API_KEYS": json.dumps([shown.get("setting")])},
        "allowed": {"ASYNCBG_AUTH__ALLOW_ANONYMOUS": "true", "ASYNCBG_DATABASE_URL": "sqlite:///other.db"},
    }[how]
    with serving(tmp_path, **variables) as (url, log):
        without = httpx.get(f"{url}/jobs", trust_env=False)
        within = httpx.get(f"{url}/jobs", headers={"Authorization": f"Bearer {shown['key']}"}, trust_env=False)
        wrong = httpx.post(f"{url}/session", json={"key": shown["key"] + "x"}, trust_env=False)
    output = log.read_text()

    assert (without.status_code, within.status_code) == {"allowed": (200, 401)}.get(how, (401, 200))
    assert wrong.status_code == 401
    assert ("without authentication" in output) is (how == "allowed")
    assert shown["key"][12:] not in output


@contextmanager
def serving(place: Path, **variables: str) -> Iterator[tuple[str, Path]]:
    """``asyncbg serve`` on all addresses and a free port; its URL and what it logs."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    log = place / "service.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "asyncbg.cli", "serve", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104 - the point
            cwd=place, env=inherited | {"PYTHONPATH": SOURCE} | variables, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while (found := re.search(r"running on http://[\d.]+:(\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{found[1]}", log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_a_ticket_is_good_at_another_process(tmp_path: Path) -> None:
    """Issued by one process, shown to another, and then good at neither."""
    key = asyncbg_command(tmp_path, "keys", "create", "ada").stdout.strip()
    (tmp_path / "other").mkdir()
    variables = {"ASYNCBG_DATABASE_URL": f"sqlite:///{tmp_path}/asyncbg.db"}
    with serving(tmp_path, **variables) as (here, _), serving(tmp_path / "other", **variables) as (there, _):
        headers, path = {"Authorization": f"Bearer {key}"}, {"path": "/events"}
        issued = httpx.post(f"{here}/stream-tickets", json=path, headers=headers, trust_env=False)
        url = issued.json()["url"] + "&follow=false"
        shown = [httpx.get(place + url, trust_env=False).status_code for place in (there, there, here)]

    assert shown == [200, 401, 401]


def test_a_job_is_enqueued_for_an_owner(tmp_path: Path) -> None:
    """The command line may submit in the name of a key."""
    done = asyncbg_command(tmp_path, "enqueue", "cleanup_task", '{"name": "x-canary7f3a"}', "--owner", "ada", "--json")

    assert json.loads(done.stdout)["owner"] == "ada"


def test_a_key_is_shown_nowhere(tmp_path: Path) -> None:
    """Neither the hash of a key in the settings nor the pepper."""
    shown = json.loads(asyncbg_command(tmp_path, "keys", "create", "ci", "--no-store", "--json").stdout)
    variables = {
        "ASYNCBG_AUTH__API_KEYS": json.dumps([shown["setting"]]),
        "ASYNCBG_AUTH__PEPPER": "a-grain-of-pepper",
    }

    for arguments in (["settings", "show"], ["settings", "show", "--json", "--sources"]):
        output = asyncbg_command(tmp_path, *arguments, **variables).stdout
        assert "ci" in output
        assert shown["setting"]["hash"] not in output
        assert "a-grain-of-pepper" not in output
