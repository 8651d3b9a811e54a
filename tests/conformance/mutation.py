"""What a mutation is: a deliberate small mistake that the checks of one obligation must find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Side(Enum):
    CLIENT = "library"  # patched in the process of the check; the agents are healthy
    AGENT = "agent"  # patched in agents that mutant_agent.py starts; the library is healthy


@dataclass(frozen=True)
class Mutation:
    """``apply`` patches the running process for good. Each check in ``found_by`` must break under it."""

    obligation: str
    name: str
    found_by: tuple[str, ...]
    side: Side
    apply: Callable[[], None]
    agents: int = 0  # of the cluster that an agent's mistake needs; 0: the check starts an agent of its own
    wrong: tuple[int, ...] = ()  # nodes of that cluster whose agents have the mistake

    @property
    def text(self) -> str:
        """What is wrong: the docstring of ``apply``."""
        return (self.apply.__doc__ or "").strip()


Collected = list[Mutation]
Apply = Callable[[], None]


def collector(into: Collected, side: Side) -> Callable[..., Callable[[Apply], Apply]]:
    """A decorator ``(obligation, *found_by, agents=, wrong=)`` that adds the function it stands on as a mutation."""

    def mutation(
        obligation: str, *found_by: str, agents: int = 0, wrong: Iterable[int] = (1,)
    ) -> Callable[[Apply], Apply]:
        def add(apply: Apply) -> Apply:
            into.append(Mutation(obligation, apply.__name__, found_by, side, apply, agents, tuple(wrong)))
            return apply

        return add

    return mutation


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put ``around(original, *arguments, **named)`` in the place of ``owner.name``."""
    original = getattr(owner, name)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        return around(original, *arguments, **named)

    setattr(owner, name, wrapper)
