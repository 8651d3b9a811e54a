"""What a deliberate mistake is: patched into the protocol's classes for as long as its ``with`` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

Patches = list[Any]
ANYWHERE = "replicated state"  # where nodes differ at all, it shows here, sometimes before anything else


@dataclass(frozen=True)
class Mutant:
    """``rules``: what the checker may call it, beside ANYWHERE."""

    name: str
    mistake: str
    rules: tuple[str, ...]
    patches: Callable[[], Patches]

    def explains(self, rule: str) -> bool:
        """Whether a violation of ``rule`` comes of this mistake."""
        return rule == ANYWHERE or rule in self.rules

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for one in self.patches():
                stack.enter_context(one)
            yield


def around(owner: type, name: str, mistake: Callable[..., Any]) -> Any:
    """``mistake(original, *arguments)`` in the place of a method; ``mistake(value, self)`` in that of a property."""
    original = vars(owner)[name]
    if isinstance(original, property):
        return patch.object(owner, name, property(lambda self: mistake(original.__get__(self), self)))

    def method(*arguments: Any, **named: Any) -> Any:
        return mistake(original, *arguments, **named)

    return patch.object(owner, name, method)


SAFETY = ("safe delivery", "durable topics")
ORDER = ("agreement", "creation", "exactly once", "fifo", "seq", "ev_id", "liveness", *SAFETY)
