"""Who may get a person's data: every exception of the canary, with its reason.

Some places are no output that is watched, since the data was sent there on purpose: the mail server, the peers that are
fetched from and the receivers of webhooks (aiohttp and aiosmtpd in the tests), the notification log, the store.
"""

import os
import re
from dataclasses import dataclass

from .people import DOCUMENTED, TAG

_UNMASKED = "ASYNCBG_PRIVACY__MASK"


@dataclass(frozen=True)
class Allowed:
    """Outputs that may hold a datum with ``text`` around it; ``unmasked`` ones where masking is switched off."""

    kind: str
    where: str
    reason: str
    text: str = ".*"
    unmasked: bool = False


_EXAMPLE = f".*{re.escape(DOCUMENTED)}.*"
_NAMED = rf"(?:(?!{TAG}).)*Dear Ada Q\. {TAG}-name, we reached you at \[email:(?:(?!{TAG}).)*"

ALLOWED = (
    Allowed("body", r"GET /user/\d+/(activity|statistics|imports)", "the person's own records"),
    Allowed("body", "POST /attachments", "the path that names an upload holds its file name, for who sent it"),
    Allowed("output", r"<stdout> of -m asyncbg\.cli keys create .*", "a new key is shown once, to who made it"),
    Allowed(
        "output", r"<stdout> of -c import json, sys; .*\[\"key\"\].*", "the tour's shell takes the new key out of it"
    ),
    Allowed("body", r"GET .*/openapi\.json", "an example in the document", text=_EXAMPLE),
    Allowed("output", "<stderr> of .*|redirected", "an example in an error", text=f".*such as {_EXAMPLE[2:]}"),
    Allowed("log", "shop by .*", "a line that an application writes itself", text=".*written by the shop: .*"),
    Allowed("output", r"<stderr> of .*library_app\.py.*", "the same", text=".*written by the shop: .*"),
    Allowed("body", r"(GET|POST) /bg/jobs/[^/]+(/cancel)?", "a name in a text that no marker covers", text=_NAMED),
    Allowed("log", "uvicorn.access by .*", "privacy.mask is off: the log shows what came", unmasked=True),
    Allowed("output", "<stdout> of -m asyncbg.cli serve .*", "privacy.mask is off: the log goes here", unmasked=True),
)


def reason_for(kind: str, where: str, text: str) -> str | None:
    """Why this output may hold the datum that stands in ``text``, or None."""
    for one in ALLOWED:
        is_meant = one.kind == kind and re.fullmatch(one.where, where) and re.fullmatch(one.text, text, re.DOTALL)
        if is_meant and (not one.unmasked or os.environ.get(_UNMASKED) == "false"):
            return one.reason
    return None
