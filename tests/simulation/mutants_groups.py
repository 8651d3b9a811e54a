"""Deliberate mistakes about groups: who is a member, and who says what as one."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from ocfcluster.client.memberships import Memberships as ClientMemberships
from ocfcluster.ipc.memberships import Memberships
from ocfcluster.protocol.groups import GroupTable
from ocfcluster.protocol.node import Node
from ocfcluster.wire import control
from tests.simulation.mutants_base import Mutant, around


def _members_of_lost_nodes_stay() -> list[Any]:
    return [patch.object(GroupTable, "departed", lambda self, present: [])]


def _one_node_forgets_the_incarnation() -> list[Any]:
    def departed(original: Any, self: GroupTable, present: set[tuple[int, int]]) -> Any:
        nodes = {node_id for node_id, _ in present}
        here = {
            (one.node_id, incarnation)
            for group in self.by_id.values()
            for one, incarnation in group.members.values()
            if one.node_id in nodes
        }
        return original(self, present | here)

    return [around(GroupTable, "departed", departed)]


def _snapshots_leave_members_out() -> list[Any]:
    return [around(GroupTable, "images", lambda images, self: [(*image[:4], []) for image in images])]


def _group_seq_left_out_of_snapshots() -> list[Any]:
    return [
        around(
            GroupTable,
            "images",
            lambda images, self: [(image[0], image[1], 0, 0, image[4]) for image in images],
        )
    ]


def _who_was_a_member_goes_on_as_one() -> list[Any]:
    return [patch.object(ClientMemberships, "stamp", lambda self, batch: None)]


def _the_dead_stay() -> list[Any]:
    return [patch.object(Memberships, "end", lambda self, reason: None)]


def _leave_passes_what_was_said() -> list[Any]:
    def publish_later(original: Any, self: Node, operand: control.Operand, behind: bool = False) -> int:
        if isinstance(operand, control.GroupLeave):
            with patch("ocfcluster.protocol.node._BEHIND", control.Close):
                return int(original(self, operand, False))
        return int(original(self, operand, behind))

    return [around(Node, "control", publish_later)]


GROUPS = (
    Mutant(
        "members of lost nodes stay",
        "a view brings no LEAVEs",
        ("groups",),
        _members_of_lost_nodes_stay,
    ),
    Mutant(
        "members outlive their agent",
        "a node that restarted keeps the members of before",
        ("groups", "liveness"),
        _one_node_forgets_the_incarnation,
    ),
    Mutant(
        "snapshots without members",
        "who joins a cluster gets its groups empty",
        ("groups", "agreement"),
        _snapshots_leave_members_out,
    ),
    Mutant(
        "snapshots without a group's seq",
        "who joins a cluster counts the events of groups anew",
        ("agreement", "seq", "receipts"),
        _group_seq_left_out_of_snapshots,
    ),
    Mutant(
        "said by who has left",
        "what is sent again names the member of before",
        ("groups",),
        _who_was_a_member_goes_on_as_one,
    ),
    Mutant("the dead stay", "the end of a process brings no LEAVE", ("liveness", "groups"), _the_dead_stay),
    Mutant(
        "a LEAVE passes what was said",
        "commands of groups do not wait for publications",
        ("groups",),
        _leave_passes_what_was_said,
    ),
)
