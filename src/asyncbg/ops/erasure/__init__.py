"""Erases a person, found by e-mail address, from the database and the data directory, and proves that it is so."""

from asyncbg.ops.erasure.email_matcher import EmailMatcher, InvalidAddressError
from asyncbg.ops.erasure.erase import Erasure, erase_person

__all__ = ["EmailMatcher", "InvalidAddressError", "Erasure", "erase_person"]
