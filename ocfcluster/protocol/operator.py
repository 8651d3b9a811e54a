"""What an operator tells a node that waits: local, not ordered, for clusters that cannot order anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class BootstrapWithout:
    """Form the first configuration without these nodes of the table, which have never been members of one."""

    nodes: tuple[int, ...]


@dataclass(slots=True, frozen=True)
class NewHistory:
    """Go on without the members that are missing: what only they had is declared lost."""


@dataclass(slots=True, frozen=True)
class Rejoin:
    """Give up the history that this node waits in, and join the other one that it hears."""


OperatorCommand = BootstrapWithout | NewHistory | Rejoin
