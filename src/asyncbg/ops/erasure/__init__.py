"""Erases a person, found by e-mail address, from the database and the data directory, and proves that it is so."""

from asyncbg.ops.erasure.address import Address, AddressError
from asyncbg.ops.erasure.erase import Erasure, forget

__all__ = ["Address", "AddressError", "Erasure", "forget"]
