"""E-mail addresses: validation of their form, and detection of special-use domains."""

from dataclasses import dataclass

from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, validate_email

from asyncbg.errors import FinalError

_SPECIAL_USE = tuple(name for name in SPECIAL_USE_DOMAIN_NAMES if name != "test")  # .test is for tests: never refused
_STAND_IN = ".example.com"


class AddressError(FinalError, ValueError):
    """The address is malformed, or its ``domain`` is a special-use name. The message names at most the domain."""

    def __init__(self, message: str, *, domain: str | None = None) -> None:
        """``domain`` is given if it is the reason."""
        super().__init__(message)
        self.domain = domain


@dataclass(frozen=True, slots=True)
class MailAddress:
    """A valid address: normalized, and in the form that SMTP sends (``wire``), in ASCII if possible."""

    normalized: str
    wire: str

    @classmethod
    def parse(cls, text: str) -> "MailAddress":
        """Parse one address without a display name. Raises AddressError.

        The validator refuses special-use domains (``.local``, ``home.arpa``) in any case. Such a domain is passed to it
        as a subdomain of another one.
        """
        domain = text.rpartition("@")[2].lower()
        below = _STAND_IN if domain and _is_special(domain) else ""
        try:
            checked = validate_email(text + below, check_deliverability=False, test_environment=True, strict=True)
        except EmailNotValidError:
            raise AddressError("should be a valid e-mail address, one only and without a name") from None
        normalized, ascii_form = checked.normalized, checked.ascii_email or checked.normalized
        return cls(normalized.removesuffix(below), ascii_form.removesuffix(below))

    def check_domain(self, *, allow_special_use: bool) -> None:
        """Raise AddressError, naming the domain, if it is a special-use name and those are not allowed."""
        domain = self.wire.rpartition("@")[2]
        if _is_special(domain) and not allow_special_use:
            raise AddressError(
                f"the domain {domain} is a special-use name (RFC 6761), not a mail domain of the Internet; "
                "to send to it all the same, set ASYNCBG_SMTP__ALLOW_SPECIAL_USE=true",
                domain=domain,
            )


def _is_special(domain: str) -> bool:
    """Whether a domain is a special-use name, or below one."""
    return any(f".{domain}".endswith(f".{name}") for name in _SPECIAL_USE)
