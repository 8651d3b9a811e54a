"""A run that is too large for one frame comes in several: PART records (docs/formats.md), put together here."""

from __future__ import annotations

import struct
from typing import Final

from ocfcluster.errors import MalformedFrame
from ocfcluster.limits import EVENT_BYTES_CEILING, PROPERTIES_BYTES, RUN_HEADER_BYTES

_LENGTH: Final = struct.Struct("<I")  # what every run begins with
_MOST_BYTES: Final = EVENT_BYTES_CEILING + RUN_HEADER_BYTES + 4 + PROPERTIES_BYTES


class Pieces:
    """What there is of one run. A piece with number 0 begins another one: what was begun is given up then."""

    __slots__ = ("_missing", "_parts")

    def __init__(self) -> None:
        self._parts: list[memoryview] = []
        self._missing = 0

    def add(self, number: int, piece: memoryview) -> bytes | None:
        """The run, with its last piece; None before. Raises MalformedFrame for what does not follow."""
        if not number:
            self.give_up()
            if len(piece) < RUN_HEADER_BYTES:
                raise MalformedFrame("the first piece of a run is shorter than its header")
            (self._missing,) = _LENGTH.unpack_from(piece)
            if self._missing > _MOST_BYTES:
                raise MalformedFrame(f"a run says it has {self._missing} bytes")
        if number != len(self._parts) or not 0 < len(piece) <= self._missing:
            self.give_up()
            raise MalformedFrame("a piece of a run that does not follow the one before")
        self._parts.append(piece)
        self._missing -= len(piece)
        if self._missing:
            return None
        run = b"".join(self._parts)
        self._parts = []
        return run

    @property
    def begun(self) -> bool:
        """Whether more of a run is to come."""
        return bool(self._parts)

    def give_up(self) -> None:
        """The rest will not come."""
        self._parts = []
        self._missing = 0
