"""The key ring: what it seals opens again, and nothing else does."""

import base64
import subprocess
import sys

import pytest

from asyncbg.errors import UnreadableError
from asyncbg.privacy.encryption import Encryption, is_encrypted, key_id_of, read_key, require_readable
from asyncbg.settings import PrivacySettings

OLD, NEW = b"o" * 32, b"n" * 32


@pytest.mark.parametrize("text", ['{"a":1}', "null", '"Zoë \U0001f600"', '"' + "x" * 100_000 + '"'])
def test_what_is_sealed_opens_again(text: str) -> None:
    """Whatever the JSON; and it is not to be seen in the sealed form, which differs each time."""
    encryption = Encryption([NEW])

    one, other = (encryption.encrypt(text, "job", "args") for _ in range(2))

    assert encryption.decrypt(one, "job", "args") == encryption.decrypt(other, "job", "args") == text
    assert one != other
    assert is_encrypted(one)
    assert text not in one


@pytest.mark.parametrize(("job", "field"), [("other", "args"), ("job", "result")])
def test_a_value_opens_only_where_it_was_stored(job: str, field: str) -> None:
    """Moved to another job or field it is refused, and nothing of it is told."""
    encryption = Encryption([NEW])
    sealed = encryption.encrypt('{"a":"hunter2-canary7f3a"}', "job", "args")

    with pytest.raises(UnreadableError, match="belongs to another job") as caught:
        encryption.decrypt(sealed, job, field)

    assert "canary7f3a" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda s: s[:-4] + "AAAA", lambda s: s[:15], lambda s: s + "é", lambda s: s[:40]])
def test_a_changed_value_is_refused(change: object) -> None:
    """Cut, lengthened or with other bytes: an error that says so."""
    encryption = Encryption([NEW])

    with pytest.raises(UnreadableError, match="was changed"):
        encryption.decrypt(change(encryption.encrypt('{"a":1}', "job", "args")), "job", "args")  # type: ignore[operator]  # a lambda


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    """So a new key is put before the old one, which can go once everything is sealed anew."""
    before = Encryption([OLD]).encrypt("1", "job", "args")
    rotated = Encryption([NEW, OLD])

    after = rotated.reencrypt(before, "job", "args")

    assert rotated.decrypt(before, "job", "args") == Encryption([NEW]).decrypt(after, "job", "args") == "1"
    assert key_id_of(after) != key_id_of(before)
    assert rotated.reencrypt(after, "job", "args") == after


def test_a_missing_key_is_named_by_its_id() -> None:
    """In an error, or in JSON where something must be shown; the executor knows that form."""
    sealed = Encryption([OLD]).encrypt('{"a":1}', "job", "args")
    shown = Encryption([NEW]).decrypt_or_explain(sealed, "job", "args")

    with pytest.raises(UnreadableError, match=f"arguments of this job .* id {key_id_of(sealed)}, .*ENCRYPTION_KEYS"):
        require_readable(shown)
    assert Encryption().decrypt_or_explain(sealed, "job", "args") == shown


def test_without_keys_nothing_is_sealed() -> None:
    """And what is plain is read as it is, with keys too: encryption can be turned on later."""
    assert Encryption().encrypt("1", "job", "args") == "1"
    assert Encryption([NEW]).decrypt("1", "job", "args") == "1"


def test_digests_are_the_same_over_a_rotation() -> None:
    """What is only compared is found again as long as the database's own key can be read."""
    first, rotated, foreign = Encryption([OLD]), Encryption([NEW, OLD]), Encryption([NEW])
    lookup = first.new_digest_key()
    for encryption in (first, rotated):
        encryption.use_digest_key(lookup)

    digest = first.digest("ada.canary7f3a@canary7f3a.example", "unique_key")

    assert digest is not None
    assert (
        digest
        == rotated.digest("ada.canary7f3a@canary7f3a.example", "unique_key")
        == first.digest(digest, "unique_key")
    )
    assert digest not in (
        first.digest("ada.canary7f3a@canary7f3a.example", "fingerprint"),
        foreign.digest("ada.canary7f3a@canary7f3a.example", "unique_key"),
    )
    assert Encryption().digest("x", "unique_key") == "x"
    assert first.digest(None, "unique_key") is None


def test_a_key_is_read_in_base64_and_hexadecimal() -> None:
    """In either alphabet, with or without the padding."""
    key = bytes(range(224, 256))
    forms = [key.hex(), key.hex().upper(), *(f(key).decode() for f in (base64.b64encode, base64.urlsafe_b64encode))]

    assert {read_key(form) for form in [*forms, forms[-1].rstrip("=")]} == {key}


@pytest.mark.parametrize(
    "text", ["", "hunter2-canary7f3a", "aa" * 31, "z" * 64, base64.b64encode(b"k" * 31).decode(), "é" * 43]
)
def test_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
    """With what to do instead."""
    with pytest.raises(ValueError, match="openssl rand -base64 32") as caught:
        read_key(text)

    assert not text or text not in str(caught.value)


def test_the_ring_is_a_list_of_secrets() -> None:
    """In its repr and JSON there is no key."""
    settings = PrivacySettings.model_validate({"encryption_keys": f"{NEW.hex()}, {OLD.hex()}"})

    assert settings.keys() == (NEW, OLD)
    assert NEW.hex() not in f"{settings!r} {settings.model_dump_json()}"


def test_without_cryptography_the_extra_is_named() -> None:
    """In one line, at the start, and only where keys are set."""
    program = (
        "import sys; sys.modules['cryptography.hazmat.primitives.ciphers.aead'] = None\n"
        "from asyncbg.privacy.encryption import Encryption\nEncryption()\nEncryption([b'k' * 32])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)

    assert "SettingsError: ASYNCBG_PRIVACY__ENCRYPTION_KEYS needs the package cryptography" in done.stderr
    assert "fastapi-asyncbg[encryption]" in done.stderr
