"""What a target is: a function of bytes that raises where a parser does not keep what it promises."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple, TypeVar

from ocfcluster.errors import Malformed, OcfError

ROOT: Final = Path(__file__).resolve().parent
Made = TypeVar("Made")


class Target(NamedTuple):
    """``check`` takes any bytes; what it raises is a bug. ``seeds`` makes inputs that are well-formed."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    reads: tuple[str, ...]  # files of ocfcluster/ that hold the parser: how deep a run goes is measured there
    mutate: Callable[[bytes, Random], bytes] | None = None  # knows the format; half of the mutations are its
    most_bytes: int = 2048  # of an input


def names() -> list[str]:
    """All targets: the modules of ``fuzz.targets``."""
    return sorted(module.name for module in pkgutil.iter_modules([str(ROOT / "targets")]))


def load(name: str) -> Target:
    """The target of this name, which ``names`` has."""
    target: Target = importlib.import_module(f"fuzz.targets.{name}").TARGET
    return target


def inputs(name: str) -> Iterator[Path]:
    """The files that are kept for a target: its corpus, and what once failed."""
    for folder in ("corpus", "found"):
        yield from sorted((ROOT / folder / name).glob("*"))


def taken(
    error: type[OcfError] | tuple[type[OcfError], ...], read: Callable[..., Made], *given: object
) -> Made | None:
    """What ``read`` makes of ``given``; None where it raises the ``error`` that it documents."""
    try:
        return read(*given)
    except error:
        return None


def well_formed(read: Callable[..., Made], *given: object) -> Made | None:
    """``taken`` for what raises Malformed."""
    return taken(Malformed, read, *given)


class Script:
    """Bytes as a source of choices: numbers and pieces, zeros behind the end."""

    __slots__ = ("_data", "_at")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.piece(size), "little")

    def piece(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += size
        return found

    def rest(self) -> bytes:
        return self.piece(len(self._data))
