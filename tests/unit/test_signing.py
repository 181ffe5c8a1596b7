"""Webhook signatures agree with the Standard Webhooks reference library and refuse what was tampered with."""

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from asyncbg.service.integrations.signing import SignatureError, SigningError, WebhookSigner, split_secrets

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
NOW_S = 1_800_000_000


@given(st.dictionaries(st.text("aä☃.\n"), st.integers() | st.text("äb.")))
def test_the_reference_library_accepts_our_signature(payload: dict[str, object]) -> None:
    """Whatever JSON body is signed, standardwebhooks verifies it."""
    body = json.dumps(payload, ensure_ascii=False).encode()

    headers = WebhookSigner([OLD]).sign("msg_1", int(time.time()), body)

    assert Webhook(OLD).verify(body, headers) == payload


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_during_rotation_either_secret_verifies(secret: str) -> None:
    """A message signed with two secrets is accepted by a receiver that holds only one of them."""
    headers = WebhookSigner([NEW, OLD]).sign("msg_1", int(time.time()), b"{}")

    assert Webhook(secret).verify(b"{}", headers) == {}
    assert headers["webhook-signature"].count(" ") == 1


def test_a_raw_text_secret_is_the_key_itself() -> None:
    """A secret without the prefix signs with its own UTF-8 bytes."""
    headers = WebhookSigner(["correct horse"]).sign("msg_1", int(time.time()), b"{}")

    assert Webhook(b"correct horse").verify(b"{}", headers) == {}


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        (OLD, [OLD]),
        (f" {OLD}\n", [OLD]),
        (f"{NEW} {OLD}", [NEW, OLD]),
        (f"{NEW}\n{OLD}", [NEW, OLD]),
        (f"{NEW},{OLD}", [NEW, OLD]),
        (f"{NEW}, {OLD},", [NEW, OLD]),
        (json.dumps([NEW, OLD]), [NEW, OLD]),
        (json.dumps(["a raw one, with a comma"]), ["a raw one, with a comma"]),
        ("raw,with-a-comma", ["raw,with-a-comma"]),
        ("raw other", ["raw", "other"]),
    ],
)
def test_one_setting_holds_several_secrets(text: str, secrets: list[str]) -> None:
    """Blanks, commas or a JSON list separate them; a raw secret keeps its commas."""
    assert split_secrets(text) == secrets


@pytest.mark.parametrize("text", ["[", "[1]", f'["{OLD}", {NEW}]', "[[]]"])
def test_a_malformed_list_of_secrets_is_refused(text: str) -> None:
    """Rather than sign with what was meant as a list; the message quotes nothing."""
    with pytest.raises(SigningError, match="JSON list") as caught:
        split_secrets(text)

    assert "whsec" not in str(caught.value)


def test_an_unpadded_base64_secret_is_accepted() -> None:
    """The padding of a whsec_ secret may be missing."""
    padded = "whsec_" + base64.b64encode(b"k" * 25).decode()

    assert WebhookSigner([padded.rstrip("=")]).sign("a", 1, b"") == WebhookSigner([padded]).sign("a", 1, b"")


def test_the_same_message_is_signed_the_same_way() -> None:
    """Id, time and body decide the headers; a retry at the same second repeats them."""
    signer = WebhookSigner([NEW])

    assert signer.sign("msg_1", NOW_S, b"x") == signer.sign("msg_1", NOW_S, b"x")


def test_verify_accepts_our_own_message_whatever_the_header_case() -> None:
    """A message signed with a rotated-out secret verifies while the signer still knows it."""
    headers = {name.title(): value for name, value in WebhookSigner([OLD]).sign("m", NOW_S, b"x").items()}

    WebhookSigner([NEW, OLD]).verify(headers, b"x", now_s=NOW_S + 300)


@pytest.mark.parametrize(
    ("change", "body", "now_s"),
    [
        ({}, b"y", NOW_S),
        ({"webhook-id": "other"}, b"x", NOW_S),
        ({"webhook-timestamp": str(NOW_S + 1)}, b"x", NOW_S),
        ({"webhook-timestamp": "soon"}, b"x", NOW_S),
        ({"webhook-signature": "v1,AAAA v2,BBBB"}, b"x", NOW_S),
        ({"webhook-signature": "v1,\u00e4"}, b"x", NOW_S),
        ({"webhook-signature": ""}, b"x", NOW_S),
        ({}, b"x", NOW_S + 301),
        ({}, b"x", NOW_S - 301),
    ],
)
def test_a_tampered_or_stale_message_is_refused(change: dict[str, str], body: bytes, now_s: int) -> None:
    """Another body, id, time or signature, or a time out of tolerance, raises SignatureError."""
    signer = WebhookSigner([NEW])

    with pytest.raises(SignatureError):
        signer.verify(signer.sign("m", NOW_S, b"x") | change, body, now_s=now_s)


@pytest.mark.parametrize("secrets", [[], [""], ["whsec_"], ["whsec_***"], [NEW, ""]])
def test_an_unusable_secret_is_refused_without_being_quoted(secrets: list[str]) -> None:
    """No secret, an empty one or broken base64 raises SigningError that does not quote it."""
    with pytest.raises(SigningError) as caught:
        WebhookSigner(secrets)

    assert "***" not in str(caught.value)


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "a\r\nx: y", "ä", "x" * 257])
def test_an_ambiguous_message_id_is_refused(message_id: str) -> None:
    """An id that could shift the signed parts or break the header raises SigningError."""
    with pytest.raises(SigningError):
        WebhookSigner([NEW]).sign(message_id, NOW_S, b"")
