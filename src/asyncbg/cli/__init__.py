"""The command ``asyncbg``, one file for each group of commands."""

from asyncbg.cli.main import ExitCode, app, main, run

__all__ = ["ExitCode", "app", "main", "run"]
