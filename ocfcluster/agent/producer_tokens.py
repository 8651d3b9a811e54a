"""Whose a producer is, across connections and restarts of the agent: who has its token.

The id of a producer can be guessed, and an agent that has just started knows none of its programs; so it gives each
producer a token with its id, which only it can make, and a program that comes back shows it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

from ocfcluster.wire.frames import LOCAL_ID

_TOKEN_BYTES: Final = 16


class ProducerTokens:
    """Makes tokens and checks them; nothing is kept of each."""

    __slots__ = ("secret_is_new", "_secret", "_incarnation", "_cluster_id")

    def __init__(
        self, secret: bytes, secret_is_new: bool, incarnation: int, cluster_id: Callable[[], str]
    ) -> None:
        """``secret`` is the state directory's; a new one has made no token before. ``cluster_id`` gives the history as
        of now."""
        self.secret_is_new = secret_is_new
        self._secret = secret
        self._incarnation = incarnation
        self._cluster_id = cluster_id

    def make(self, producer: int) -> bytes:
        """The token of ``producer``: of its history, or of this incarnation where it is of local topics. The same id
        is somebody else's in the next one."""
        within = str(self._incarnation) if producer & LOCAL_ID else self._cluster_id()
        return hmac.digest(self._secret, f"producer {producer} of {within}".encode(), "sha256")[:_TOKEN_BYTES]

    def fits(self, producer: int, token: bytes) -> bool:
        return hmac.compare_digest(self.make(producer), token)
