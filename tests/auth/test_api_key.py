"""The form of a key, and what is kept of it."""

import inspect
import re

import pytest

from asyncbg.auth.api_key import hash_key, hash_token, hint_of, is_hash, is_key, matches, new_key, new_token


def test_a_key_has_a_form_that_scanners_find() -> None:
    """A prefix, 256 random bits and a checksum, of letters and digits only, so that a double click takes all of it."""
    keys = {new_key() for _ in range(1000)}

    assert len(keys) == 1000
    assert all(re.fullmatch(r"abg_[0-9A-Za-z]{49}", key) and is_key(key) for key in keys)
    assert 62**43 > 2**256


def test_a_mistyped_key_is_no_key() -> None:
    """The checksum finds every single wrong character, and what is not of the form at all."""
    key = new_key()
    other = {character: "b" if character == "a" else "a" for character in key}

    assert not any(is_key(key[:at] + other[key[at]] + key[at + 1 :]) for at in range(4, len(key)))
    assert not any(
        is_key(text) for text in ("", "abg_", key[:-1], f"{key}a", f" {key}", key.upper(), "abg_" + "é" * 49)
    )


def test_only_a_salted_hash_is_kept() -> None:
    """Two hashes of one key differ, both match it, and no other key does."""
    key = new_key()
    first, second = hash_key(key), hash_key(key)

    assert first != second
    assert is_hash(first)
    assert key not in first
    assert matches(key, first)
    assert matches(key, second)
    assert not matches(new_key(), first)


def test_another_pepper_ends_a_key() -> None:
    """The pepper is a part of the hash's own key."""
    key = new_key()

    assert matches(key, hash_key(key, pepper=b"p"), pepper=b"p")
    assert not matches(key, hash_key(key, pepper=b"p"))
    assert not matches(key, hash_key(key), pepper=b"p")


@pytest.mark.parametrize(
    "text", ["", "hmac-sha256$$", "hunter2-canary7f3a", hash_key("x").upper(), hash_key("x") + "0"]
)
def test_what_we_did_not_make_is_no_hash(text: str) -> None:
    """A setting that holds a key, or a hash of another kind, is told at the start."""
    assert not is_hash(text)


def test_digests_are_compared_in_constant_time() -> None:
    """The one comparison of what a caller sent is ``hmac.compare_digest``."""
    source = inspect.getsource(matches)

    assert "hmac.compare_digest(" in source
    assert "==" not in source


def test_a_hint_tells_keys_apart_and_opens_nothing() -> None:
    """Eight of the forty-three characters are shown in lists."""
    key = new_key()

    assert hint_of(key) == key[:12]
    assert not is_key(hint_of(key))


def test_the_hash_of_a_token_is_for_one_purpose() -> None:
    """A ticket is no session, though both are random text."""
    token = new_token()

    assert len(token) == 43
    assert hash_token(token, "asyncbg-session") != hash_token(token, "asyncbg-ticket")
