"""Keeps people out of logs: marked fields become pseudonyms, and patterns catch what free text lets slip.

The marker is the rule, the patterns are the net below it: ``redact`` knows only what looks unmistakably
personal or secret.
"""

from asyncbg.redact.log import RedactingFilter
from asyncbg.redact.marker import Personal, personal_fields
from asyncbg.redact.net import redact, redact_json
from asyncbg.redact.pseudonym import CARD, SECRET, mask, pseudonym, use_pseudonym_key

__all__ = [
    "CARD",
    "SECRET",
    "Personal",
    "RedactingFilter",
    "mask",
    "personal_fields",
    "pseudonym",
    "redact",
    "redact_json",
    "use_pseudonym_key",
]
