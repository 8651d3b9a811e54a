"""What declarations are made of.

Three properties of construct's compiled parsers decide how a declaration is written: a ``Bytes`` at the end of the
input is silently short, so every one is followed by a comparison of its length; short integers raise ``struct.error``
and not construct's errors, so ``Format`` turns all failures into one; and conditions must be expressions of ``this``,
so those that need a function are a ``Rule``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from construct import (
    Bytes,
    Check,
    CheckError,
    Construct,
    ConstructError,
    Struct,
    Terminated,
    len_,
    this,
)

from ocfcluster.errors import Malformed


class Rule(Construct):  # type: ignore[misc] # construct has no types
    """A Check whose condition is a function of the fields so far: works in compiled parsers, too."""

    def __init__(self, holds: Callable[[Any], object]) -> None:
        super().__init__()
        self.holds = holds
        self.flagbuildnone = True

    def _parse(self, _stream: Any, context: Any, path: Any) -> None:
        if not self.holds(context):
            raise CheckError("a rule of the format does not hold", path=path)

    def _build(self, _obj: Any, stream: Any, context: Any, path: Any) -> None:
        self._parse(stream, context, path)


class Format:
    """One format: fields that take up the whole of some bytes, no more and no less.

    ``parse`` and ``build`` go through the declaration itself, or through its compiled form with ``compiled=True``;
    both raise this format's kind of Malformed whatever goes wrong.
    """

    __slots__ = ("_compiled", "_declared", "_error", "name")

    def __init__(self, name: str, error: type[Malformed], *fields: Any) -> None:
        self.name = name
        self._error = error
        self._declared = Struct(*fields, Terminated)
        self._compiled: Any = None

    def parse(self, data: bytes, *, compiled: bool = False) -> Any:
        """The fields of ``data``, by name."""
        return self._guarded(self._parser(compiled).parse, data)

    def build(self, fields: Mapping[str, Any], *, compiled: bool = False) -> bytes:
        """The bytes that hold ``fields``, which name every field (computed ones may be left out)."""
        built: bytes = self._guarded(self._parser(compiled).build, fields)
        return built

    def _parser(self, compiled: bool) -> Any:
        if not compiled:
            return self._declared
        if self._compiled is None:
            self._compiled = self._declared.compile()
        return self._compiled

    def _guarded(self, action: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return action(argument)
        except (ConstructError, struct.error, LookupError, TypeError, ValueError, OverflowError) as error:
            raise self._error(f"{self.name}: {type(error).__name__}: {error}") from None


def octets(name: str, length: Any) -> tuple[Any, Any]:
    """``length`` bytes, compared with what there is. ``length`` is known not to be negative."""
    return name / Bytes(length), Check(len_(this[name]) == length)


def between(name: str, least: int, most: int) -> Any:
    return Check((this[name] >= int(least)) & (this[name] <= int(most)))  # an enum's repr does not compile


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
