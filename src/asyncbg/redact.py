"""The public name of the pattern net: ``from asyncbg.redact import redact, RedactingFilter``."""

from asyncbg.privacy import Personal, RedactingFilter, redact, redact_json

__all__ = ["Personal", "RedactingFilter", "redact", "redact_json"]
