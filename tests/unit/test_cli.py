"""The command line, run as a user runs it: what it prints, and the code it exits with."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import asyncbg.errors

SOURCE = str(Path(asyncbg.errors.__file__).parents[1])


def asyncbg_command(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``asyncbg`` in an empty directory with only these ASYNCBG_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    return subprocess.run(
        [sys.executable, "-m", "asyncbg.cli", *arguments],
        cwd=place,
        env=inherited | {"PYTHONPATH": SOURCE} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_show_prints_every_setting_and_its_source(tmp_path: Path) -> None:
    """Each line has the variable, the value and, when asked, where it comes from."""
    done = asyncbg_command(tmp_path, "settings", "show", "--sources", ASYNCBG_SERVER__PORT="9000")

    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("ASYNCBG_SERVER__PORT"))
    assert line.split() == ["ASYNCBG_SERVER__PORT", "9000", "environment", "ASYNCBG_SERVER__PORT"]
    assert "default" in done.stdout


def test_settings_show_prints_json(tmp_path: Path) -> None:
    """With --json values nest as in a profile file; with --sources each says where it comes from."""
    plain = asyncbg_command(tmp_path, "settings", "show", "--json")
    sourced = asyncbg_command(tmp_path, "settings", "show", "--json", "--sources")

    assert json.loads(plain.stdout)["server"] == {
        "host": "127.0.0.1",
        "port": 8000,
        "log_format": "text",
        "security_contact": None,
    }
    assert json.loads(sourced.stdout)["server"]["port"] == {
        "value": 8000,
        "variable": "ASYNCBG_SERVER__PORT",
        "source": "default",
    }


def test_settings_show_hides_secrets(tmp_path: Path) -> None:
    """A secret is stars in the table and in JSON."""
    variables = {"ASYNCBG_SMTP__USERNAME": "u", "ASYNCBG_SMTP__PASSWORD": "hunter2-canary7f3a"}

    for arguments in ([], ["--sources"], ["--json"]):
        done = asyncbg_command(tmp_path, "settings", "show", *arguments, **variables)

        assert done.returncode == 0
        assert "canary7f3a" not in done.stdout + done.stderr
        assert "**********" in done.stdout


@pytest.mark.parametrize("command", [["settings", "show"], ["serve"]])
@pytest.mark.parametrize(
    ("name", "value"), [("ASYNCBG_SERVER__PROT", "1"), ("ASYNCBG_SERVER__PORT", "x"), ("ASYNCBG_PROFILE", "nowhere")]
)
def test_a_bad_setting_is_one_line_and_exit_code_2(tmp_path: Path, command: list[str], name: str, value: str) -> None:
    """No traceback: one line that names the variable."""
    done = asyncbg_command(tmp_path, *command, **{name: value})

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"asyncbg: {name}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["bogus"], ["settings", "show", "--nope"], ["serve", "--port", "x"]])
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    """An unknown command, an unknown option and a malformed value say what is wrong."""
    done = asyncbg_command(tmp_path, *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith("asyncbg: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_out_of_range_is_named_like_the_setting(tmp_path: Path) -> None:
    """Command line arguments are settings and are checked as such."""
    done = asyncbg_command(tmp_path, "serve", "--port", "99999")

    assert done.returncode == 2
    assert done.stderr.startswith("asyncbg: ASYNCBG_SERVER__PORT (argument): ")


def test_a_port_in_use_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """The line names the port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = asyncbg_command(tmp_path, "serve", "--port", str(port))

    assert done.returncode == 1
    assert done.stderr == (
        f"asyncbg: port {port} on 127.0.0.1 is in use; stop the other process or choose another with --port\n"
    )


def test_the_version_and_the_help_are_printed(tmp_path: Path) -> None:
    """Both exit 0; the help names the commands."""
    version = asyncbg_command(tmp_path, "--version")
    helped = asyncbg_command(tmp_path, "--help")

    assert (version.returncode, helped.returncode) == (0, 0)
    assert version.stdout.strip()
    for command in ("serve", "worker", "demo", "settings"):
        assert command in helped.stdout
