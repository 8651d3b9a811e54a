"""What a node keeps on disk, as one record: staged here, written as a whole, one write at a time.

Several changes that come while a write is under way go out together in the next one. What must not be said before it
is durable is handed to ``when_durable``; a write that fails is tried again, and what waits for it goes on waiting: no
vote without its record on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ocfcluster import limits
from ocfcluster.errors import StateDirectoryError
from ocfcluster.protocol.effects import Effect, Persist
from ocfcluster.protocol.settings import Record

NO_LIMIT: Final = 2**63 - 1
_EMPTY: Final = Record(None, [], 0, 0)

Then = Callable[[int], None]  # gets ``now``


class Store:
    """The newest record, and how much of it is on disk. ``version`` counts changes; ``durable`` is the one on disk."""

    __slots__ = (
        "record",
        "version",
        "durable",
        "failures",
        "_writing",
        "_waiting",
        "_retry_at",
        "_next_token",
    )

    def __init__(self, encoded: bytes) -> None:
        """``encoded``: what Persist last wrote, empty at the first start. Raises StateDirectoryError."""
        self.record = read_record(encoded) or _EMPTY
        self.version = self.durable = 0
        self.failures = 0
        self._writing: tuple[int, int] | None = None  # (token, version) of the write under way
        self._waiting: deque[tuple[int, Then, str]] = deque()
        self._retry_at = 0
        self._next_token = 1

    def change(self, **fields: Any) -> int:
        """Stage other values for fields of the record; the version that has them."""
        self.record = msgspec.structs.replace(self.record, **fields)
        self.version += 1
        return self.version

    def when_durable(self, then: Then, now: int, key: str = "") -> None:
        """Call ``then(now)`` once all that is staged now is on disk; at once where it is.

        Of those with the same ``key`` the last alone is called: what others may ask for again and again does not
        pile up while a disk is slow.
        """
        if self.version <= self.durable:
            then(now)
            return
        if key:
            self._waiting = deque(one for one in self._waiting if one[2] != key)
        self._waiting.append((self.version, then, key))

    def write(self, effects: list[Effect], now: int) -> None:
        """Have the record written where it changed."""
        if self.version > self.durable and self._writing is None and now >= self._retry_at:
            token = self._next_token
            self._next_token += 1
            self._writing = (token, self.version)
            effects.append(Persist(token, msgspec.msgpack.encode(self.record)))

    def next_timer(self) -> int:
        """When a failed write is tried again."""
        return self._retry_at if self.version > self.durable and self._writing is None else NO_LIMIT

    def written(self, token: int, ok: bool, now: int) -> bool:
        """The answer to a Persist; False where the write failed."""
        if self._writing is None or self._writing[0] != token:
            return True
        version = self._writing[1]
        self._writing = None
        if not ok:
            self.failures += 1
            self._retry_at = now + limits.PERSIST_RETRY_NS
            return False
        self.durable = version
        while self._waiting and self._waiting[0][0] <= version:  # a new one where an answer has put one in
            self._waiting.popleft()[1](now)
        return True


def read_record(encoded: bytes) -> Record | None:
    """Raises StateDirectoryError for what is no record."""
    if not encoded:
        return None
    try:
        return msgspec.msgpack.decode(encoded, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateDirectoryError(f"the state directory's record cannot be read: {error}") from None
