"""All deliberate mistakes, library's and agent's. Importing this changes nothing; ``apply()`` of one does."""

from __future__ import annotations

from typing import Final

from tests.conformance import (
    agent_mutations,
    choosing_mutations,
    client_mutations,
    component_mutations,
    group_mutations,
    membership_mutations,
    publisher_mutations,
    retention_mutations,
)
from tests.conformance.mutation import Mutation, Side

MUTATIONS: Final[dict[str, Mutation]] = {
    one.name: one
    for module in (
        client_mutations,
        publisher_mutations,
        agent_mutations,
        membership_mutations,
        component_mutations,
        group_mutations,
        choosing_mutations,
        retention_mutations,
    )
    for one in module.MUTATIONS
}

__all__ = ["MUTATIONS", "Mutation", "Side"]
