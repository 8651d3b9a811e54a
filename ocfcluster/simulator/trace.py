"""What happened in a run: a hash over all of it, and the last part of it, readable."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import IO, Final

from xxhash import xxh3_64

KEEP_LINES: Final = 4000  # memory of a run stays bounded however long it is
KEEP_PAYLOAD_BYTES: Final = 1536  # of each buffer: a whole datagram, to name what is in it

Line = tuple[int, int, str, str, bytes, int, int]
Describe = Callable[[bytes, int, int], str]


class Violation(Exception):
    """A promise was broken. ``rule`` is a short name that stays the same from run to run."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


class Trace:
    """Lines of (time, node, what, detail, payload); node 0 is the world itself.

    The hash covers every line whole, also those no longer kept. With ``out`` each line is written as it comes.
    """

    __slots__ = ("_describe", "_hash", "_lines", "_out", "counts")

    def __init__(self, describe: Describe, out: IO[str] | None = None, keep: int = KEEP_LINES) -> None:
        self._hash = xxh3_64()
        self._lines: deque[Line] = deque(maxlen=keep)
        self._out = out
        self._describe = describe
        self.counts: Counter[str] = Counter()

    def add(
        self, now: int, node: int, what: str, detail: str = "", payload: bytes = b"", segment: int = 0
    ) -> None:
        """One line; ``payload`` is a buffer of datagrams of ``segment`` bytes each."""
        self.counts[what] += 1
        self._hash.update(f"{now} {node} {what} {detail}\n".encode())
        size = len(payload)
        if size:
            self._hash.update(payload)
        line = (now, node, what, detail, payload[:KEEP_PAYLOAD_BYTES], size, segment)
        self._lines.append(line)
        if self._out is not None:
            self._out.write(self._format(line) + "\n")

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def tail(self, count: int) -> Iterator[str]:
        """The last ``count`` lines kept, readable."""
        for line in list(self._lines)[-count:]:
            yield self._format(line)

    def _format(self, line: Line) -> str:
        now, node, what, detail, payload, size, segment = line
        who = f"node {node}" if node else "world "
        text = f"{now / 1_000_000:12.3f} ms  {who}  {what:<10} {detail}"
        if size:
            text += f"  {self._describe(payload, size, segment)}"
        return text.rstrip()
