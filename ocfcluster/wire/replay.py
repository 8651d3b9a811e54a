"""Which datagrams of a sender were taken: each counter once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ocfcluster import limits

_WORD_BITS: Final = 1024  # counters not taken are kept by so many, as the bits of one number
_WORDS: Final = limits.REPLAY_WINDOW // _WORD_BITS + 1


class ReplayWindow:
    """Takes each counter of a sender once; what lies REPLAY_WINDOW behind the highest is not taken at all.

    Some 20 KiB at most, however a sender jumps about.
    """

    __slots__ = ("_highest", "_missing")

    def __init__(self) -> None:
        self._highest = 0
        self._missing: dict[int, int] = {}  # counter // _WORD_BITS → bits of those passed over

    def accept(self, first: int, count: int = 1) -> bool:
        """Whether all of ``count`` counters from ``first`` on are new; they are taken then."""
        highest = self._highest
        if first > highest:
            if first > highest + 1:
                self._pass_over(max(highest + 1, first - limits.REPLAY_WINDOW), first)
            self._highest = first + count - 1
            return True
        if first <= highest - limits.REPLAY_WINDOW or first + count > highest:
            return False
        missing = self._missing
        parts = list(_words(first, first + count))
        if any(missing.get(word, 0) & bits != bits for word, bits in parts):
            return False
        for word, bits in parts:
            missing[word] ^= bits
        return True

    def taken(self, first: int, count: int = 1) -> bool:
        """Whether each of ``count`` counters from ``first`` on was taken, or lies too far behind to be. Takes none."""
        if first + count - 1 > self._highest:
            return False
        missing = self._missing
        oldest = self._highest - limits.REPLAY_WINDOW
        if first <= oldest:
            first, count = oldest + 1, first + count - 1 - oldest
        return not any(missing.get(word, 0) & bits for word, bits in _words(first, first + count))

    def _pass_over(self, begin: int, end: int) -> None:
        missing = self._missing
        for word, bits in _words(begin, end):
            missing[word] = missing.get(word, 0) | bits
        if len(missing) > 2 * _WORDS:
            oldest = (end - limits.REPLAY_WINDOW) // _WORD_BITS
            self._missing = {word: bits for word, bits in missing.items() if bits and word >= oldest}


def _words(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The counters from ``begin`` to before ``end`` as words and bits in them."""
    while begin < end:
        word, bit = divmod(begin, _WORD_BITS)
        many = min(_WORD_BITS - bit, end - begin)
        yield word, ((1 << many) - 1) << bit
        begin += many
