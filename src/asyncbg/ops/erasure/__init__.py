"""Erasure of a person, identified by e-mail address, from the database and the data directory, with verification."""

from asyncbg.ops.erasure.email_matcher import EmailMatcher, InvalidAddressError
from asyncbg.ops.erasure.erase import Erasure, erase_person

__all__ = ["EmailMatcher", "InvalidAddressError", "Erasure", "erase_person"]
