"""Cluster keys: the text of a key file, what may be said of a key, and the keys that are derived from it.

A key is 32 random bytes that all nodes of a cluster have, and nobody else. Nothing is ever sealed with it itself:
each incarnation seals with a subkey of its own, each TCP connection with two (HKDF-SHA256, RFC 5869). A key's *id*
may be shown to anybody: eight hexadecimal digits, derived one way.

Key file: UTF-8. Lines that begin with ``#`` and empty ones are comments. The first other line is ``ocfcluster-keys
1``, each one after it is a key in base64. The first key seals, all of them are accepted.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Final

from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import KEY_FILE_BYTES, KEYS

KEY_BYTES: Final = 32
HINTS: Final = 64  # different values of ``ClusterKey.hint``
_HEAD: Final = "ocfcluster-keys"
_VERSION: Final = "1"
_SALT: Final = b"ocfcluster cluster key 1"
_ID: Final = b"ocfcluster key id 1"
_COMMENT: Final = """\
# Keys of an ocfcluster cluster. SECRET: whoever has them can read and forge all that its nodes say to each other.
# The first key seals, every key here is accepted. Change them with `ocfcluster key`.
"""


class ClusterKey:
    """One key. Its secret is in no text that can be made of it."""

    __slots__ = ("id", "hint", "_secret", "_root")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ConfigurationError(f"a key has {KEY_BYTES} bytes, this one {len(secret)}")
        self._secret = secret
        self._root = hmac.digest(_SALT, secret, "sha256")  # HKDF-Extract
        number = int.from_bytes(self.derive(_ID)[:4], "big")
        self.id = f"{number:08x}"
        self.hint = number % HINTS  # in the clear header: which key to try

    def derive(self, purpose: bytes) -> bytes:
        """32 bytes for one purpose (HKDF-Expand, one block)."""
        return hmac.digest(self._root, purpose + b"\x01", "sha256")

    def encoded(self) -> str:
        """The secret, as a line of a key file."""
        return base64.b64encode(self._secret).decode("ascii")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterKey) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"ClusterKey({self.id})"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


def purpose(label: str, *parts: bytes) -> bytes:
    """An unambiguous name of what a derived key is for: each part with its length."""
    return b"".join([len(part).to_bytes(2, "big") + part for part in (label.encode("ascii"), *parts)])


def parse_keys(text: str) -> list[ClusterKey]:
    """The keys of a key file, in its order. Raises ConfigurationError, which never quotes what may be a secret."""
    if len(text) > KEY_FILE_BYTES:
        raise ConfigurationError(f"is no key file: larger than {KEY_FILE_BYTES} bytes")
    keys: list[ClusterKey] = []
    began = False
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if not began:
            head, _, version = line.partition(" ")
            if head != _HEAD:
                raise ConfigurationError(
                    f"line {number}: is no key file; it begins with '{_HEAD} {_VERSION}' "
                    "(ocfcluster keygen makes one)"
                )
            if version.strip() != _VERSION:
                raise ConfigurationError(f"line {number}: a key file of another version than {_VERSION}")
            began = True
            continue
        keys.append(_key(line, number))
    if not began:
        raise ConfigurationError("is empty; ocfcluster keygen makes a key file")
    fault = keys_fault(keys)
    if fault:
        raise ConfigurationError(fault)
    return keys


def _key(line: str, number: int) -> ClusterKey:
    try:
        secret = base64.b64decode(line.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigurationError(f"line {number}: is no key ({KEY_BYTES} bytes in base64, 44 characters)")
    if len(set(secret)) < KEY_BYTES // 4:  # chance gives fewer than 17 different bytes once in 10^12 keys
        raise ConfigurationError(f"line {number}: this key is not random; ocfcluster keygen makes one")
    return ClusterKey(secret)


def keys_fault(keys: Sequence[ClusterKey]) -> str:
    """Why these keys cannot be used together; empty: they can."""
    if not keys:
        return "has no key; ocfcluster keygen makes one"
    if len(keys) > KEYS:
        return f"has {len(keys)} keys; at most {KEYS}: drop those that nobody uses any more"
    by_hint: dict[int, ClusterKey] = {}
    for key in keys:
        other = by_hint.get(key.hint)
        if other == key:
            return f"has key {key.id} twice"
        if other is not None:
            return (
                f"has keys {other.id} and {key.id}, which cannot be told apart in a datagram's header (1 in {HINTS} "
                "pairs): make another one"
            )
        by_hint[key.hint] = key
    return ""


def key_text(keys: Sequence[ClusterKey]) -> str:
    """A key file with ``keys``, in their order."""
    lines = [f"# {key.id}\n{key.encoded()}\n" for key in keys]
    return f"{_COMMENT}{_HEAD} {_VERSION}\n{''.join(lines)}"
