"""The store in a SQLite file: a module for each kind of lane, over the statements and the event log they share."""

from asyncbg.store.sqlite.backend import MIGRATIONS, SQLiteBackend
from asyncbg.store.sqlite.rescue import POISON_AFTER

__all__ = ["MIGRATIONS", "POISON_AFTER", "SQLiteBackend"]
