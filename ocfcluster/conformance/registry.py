"""Which checks there are, by obligation, and what may come of one."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from ocfcluster.conformance.context import Context

    Body = Callable[[Context], None]

_MODULES: Final = (
    "subscribing",
    "permissions",
    "receiving",
    "descriptors",
    "library",
    "publishing",
    "topics",
    "messages",
    "order",
    "loss",
    "membership",
    "connectivity",
    "components",
    "groups",
    "choosing",
    "retention",
)
TIME_LIMIT_S: Final = 30.0


class Verdict(Enum):
    HELD = "held"
    BROKEN = "broken"
    NOT_RUN = "not run"


class Check(NamedTuple):
    """One check of one obligation."""

    obligation: str
    name: str
    body: Body
    time_limit_s: float

    @property
    def text(self) -> str:
        """What the check states: the first line of its docstring."""
        return (self.body.__doc__ or self.name).strip().splitlines()[0]


class Result(NamedTuple):
    """What came of one check."""

    obligation: str
    check: str
    verdict: Verdict
    detail: str
    seconds: float

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self._asdict(), "verdict": self.verdict.value}


_CHECKS: Final[list[Check]] = []


def obligation(identifier: str, *, time_limit_s: float = TIME_LIMIT_S) -> Callable[[Body], Body]:
    """Registers the decorated function as a check of the obligation ``identifier``."""

    def register(body: Body) -> Body:
        _CHECKS.append(Check(identifier, body.__name__, body, time_limit_s))
        return body

    return register


def checks() -> list[Check]:
    """All checks, in the order of their obligations (A1, A2, … A16, E1, … S3)."""
    for module in _MODULES:
        importlib.import_module(f"ocfcluster.conformance.{module}")
    return sorted(_CHECKS, key=lambda check: _sort_key(check.obligation))


def known_obligations() -> list[str]:
    """The ids of all obligations that have a check."""
    return list(dict.fromkeys(check.obligation for check in checks()))


def _sort_key(identifier: str) -> tuple[str, int]:
    match = re.fullmatch(r"([A-Z]+)([0-9]+)", identifier)
    if match is None:
        raise ValueError(f"{identifier!r} is no obligation id, as A1 is")
    return match[1], int(match[2])
