"""Keeps people out of logs: marked fields become pseudonyms, and patterns catch what free text lets slip.

The marker is the rule, the patterns are the net below it: ``redact`` knows only what looks unmistakably
personal or secret.
"""

from asyncbg.privacy.log_redaction import RedactingFilter
from asyncbg.privacy.marks import Personal
from asyncbg.privacy.patterns.redaction import redact, redact_json
from asyncbg.privacy.pseudonyms import CARD, SECRET, mask, pseudonym, use_pseudonym_key

__all__ = [
    "CARD",
    "SECRET",
    "Personal",
    "RedactingFilter",
    "mask",
    "pseudonym",
    "redact",
    "redact_json",
    "use_pseudonym_key",
]
