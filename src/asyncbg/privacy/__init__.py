"""Privacy: marked fields become pseudonyms, and patterns find personal data and secrets in free text.

The marks are the rule, the patterns a safety net: ``redact`` finds only what looks unmistakably personal or secret.
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
