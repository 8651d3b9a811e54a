"""Key files and what may be said of a key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import pickle
import secrets

import pytest

from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import KEY_FILE_BYTES, KEYS
from ocfcluster.wire.keys import KEY_BYTES, ClusterKey, key_text, keys_fault, parse_keys, purpose
from tests.keyed import new_key


def test_a_key_file_gives_its_keys_back_in_their_order() -> None:
    first = new_key()
    second = new_key(first)
    text = key_text([first, second])
    assert parse_keys(text) == [first, second]
    assert parse_keys(text.replace("\n", "\r\n") + "\n# the end\n\n") == [first, second]
    assert f"# {first.id}\n" in text


def test_the_derivation_is_hkdf_with_sha256() -> None:
    """RFC 5869, worked out here once more: extract with a fixed salt, expand by one block."""
    secret = bytes(range(32))
    root = hmac.new(b"ocfcluster cluster key 1", secret, hashlib.sha256).digest()
    key = ClusterKey(secret)
    assert key.derive(b"what for") == hmac.new(root, b"what for\x01", hashlib.sha256).digest()
    assert key.id == hmac.new(root, b"ocfcluster key id 1\x01", hashlib.sha256).hexdigest()[:8]


def test_purposes_do_not_run_into_each_other() -> None:
    assert purpose("a", b"bc", b"d") != purpose("a", b"b", b"cd")
    assert purpose("ab", b"c") != purpose("a", b"bc")


def test_no_text_made_of_a_key_shows_its_secret() -> None:
    secret = secrets.token_bytes(KEY_BYTES)
    key = ClusterKey(secret)
    for text in (repr(key), str(key), f"{key!r}", f"{[key]}"):
        assert text.strip("[]") == f"ClusterKey({key.id})"
    with pytest.raises(TypeError):
        pickle.dumps(key)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("# only this\n", "is empty"),
        ("hello\n", "is no key file"),
        ("ocfcluster-keys 2\n", "another version"),
        ("ocfcluster-keys 1\n", "has no key"),
        ("ocfcluster-keys 1\nAAAA\n", "line 2: is no key"),
        ("ocfcluster-keys 1\n" + "A" * 43 + "é\n", "line 2: is no key"),
        ("ocfcluster-keys 1\n" + base64.b64encode(bytes(32)).decode() + "\n", "is not random"),
        ("x" * (KEY_FILE_BYTES + 1), "larger than"),
    ],
)
def test_what_is_no_key_file_is_refused_with_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_keys(text)


def test_a_refusal_never_quotes_a_line_that_may_hold_a_secret() -> None:
    line = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    for text in (line + "\n", f"ocfcluster-keys 1\n{line[:-5]}\n", f"ocfcluster-keys {line}\n"):
        with pytest.raises(ConfigurationError) as raised:
            parse_keys(text)
        assert line[:8] not in str(raised.value)


def test_keys_that_cannot_be_together() -> None:
    first = new_key()
    assert "twice" in keys_fault([first, first])
    keys = [first]
    while len(keys) <= KEYS:
        keys.append(new_key(*keys))
    assert keys_fault(keys[:KEYS]) == ""
    assert f"at most {KEYS}" in keys_fault(keys)
    while (alike := new_key()).hint != first.hint:
        pass
    assert "cannot be told apart" in keys_fault([first, alike])


def test_a_key_has_its_length() -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        ClusterKey(b"short")
