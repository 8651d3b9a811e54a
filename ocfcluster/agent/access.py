"""Who may do what: lists of principals against the credentials of a connection.

Rights are checked where a program asks, against the settings that its agent has delivered; what comes from other
nodes has been checked there. docs/decisions/0040 says why, and how groups fit in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple, Protocol

from ocfcluster.ipc.peer import Peer
from ocfcluster.limits import GROUP_PREFIX
from ocfcluster.protocol.effects import Topic
from ocfcluster.protocol.state import FIRST_TOPIC_ID
from ocfcluster.wire.topics import ANYBODY, Access


class Right(StrEnum):
    """What can be allowed of a topic; a group's members need both of the first two."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    ADMINISTER = "administer"


class Verdict(NamedTuple):
    """Whether something is permitted, and why, as the end of a sentence."""

    allowed: bool
    why: str


class Names(Protocol):
    """What the gate asks of the name service."""

    def ids(self, kind: str, name: str) -> tuple[int, ...] | None: ...


class Match(NamedTuple):
    """The principal of a list that somebody is; empty: none, or with ``pending`` not known yet."""

    principal: str
    pending: bool


def is_rule(topic: Topic) -> bool:
    """Whether it is no topic but says who may use groups: its name is a group's, or a beginning of such and ``*``."""
    return topic.local and topic.name.startswith(GROUP_PREFIX)


def rule_for(group: str, topics: Mapping[str, Topic]) -> Topic | None:
    """The rule of a group: the one of its name, else the one with the longest beginning of it."""
    rule = topics.get(group)
    at = len(group)
    while rule is None and at >= len(GROUP_PREFIX):
        rule = topics.get(group[:at] + "*")
        at -= 1
    return rule


class Gate:
    """Judges. Every answer is None while a name that it depends on is being looked up."""

    def __init__(
        self, administrators: Iterable[str], creators: Iterable[str], names: Names,
        topics: Callable[[], Mapping[str, Topic]],
    ) -> None:  # fmt: skip
        self.administrators = tuple(administrators)
        self.creators = tuple(creators)
        self._names = names
        self._topics = topics

    def access(self, topic: Topic) -> Access:
        """The lists that hold for a topic or group. The cluster's own topics have settings like any other, of which
        all but who may subscribe says nothing: components publish there, and nobody alters them."""
        if topic.topic_id < FIRST_TOPIC_ID:
            return Access(publish=(), subscribe=topic.settings.access.subscribe, administer=())
        if topic.name.startswith(GROUP_PREFIX):
            rule = rule_for(topic.name, self._topics())
            return Access() if rule is None else rule.settings.access
        return topic.settings.access

    def judge(self, peer: Peer, right: Right, topic: Topic) -> Verdict | None:
        """May ``peer`` do this with a topic, or with a group?"""
        if topic.topic_id < FIRST_TOPIC_ID and right is not Right.SUBSCRIBE:
            return Verdict(False, "it belongs to the cluster itself")
        everything = self.everything(peer)
        if everything is not None and everything.allowed:
            return everything
        principals: tuple[str, ...] = getattr(self.access(topic), right)
        match = self.match(peer, principals)
        if match.principal:
            return Verdict(
                True, "anybody may" if match.principal == ANYBODY else f"it names {match.principal}"
            )
        if match.pending or everything is None:
            return None
        return Verdict(False, f"it is for {spoken(principals)}")

    def create(self, peer: Peer, name: str) -> Verdict | None:
        """May ``peer`` create a topic of this name?"""
        everything = self.everything(peer)
        if everything is not None and everything.allowed:
            return everything
        rule = name.startswith(GROUP_PREFIX)
        match = Match("", False) if rule else self.match(peer, self.creators)
        if match.principal:
            return Verdict(True, f"access.create of this node names {match.principal}")
        if match.pending or everything is None:
            return None
        return Verdict(False, f"it is for {spoken(() if rule else self.creators)}")

    def everything(self, peer: Peer) -> Verdict | None:
        """May ``peer`` do everything on this node?"""
        if peer.uid == 0:
            return Verdict(True, "root may do everything")
        if peer.uid == os.geteuid():
            return Verdict(True, "the user whom the agent runs as may do everything")
        match = self.match(peer, self.administrators)
        if match.principal:
            return Verdict(True, f"access.administrators of this node names {match.principal}")
        return None if match.pending else Verdict(False, f"it is for {spoken(())}")

    def match(self, peer: Peer, principals: Iterable[str]) -> Match:
        """The first of ``principals`` that ``peer`` is. All names that it takes are looked up at once."""
        pending = False
        for principal in principals:
            if principal == ANYBODY:
                return Match(principal, False)
            kind, _, name = principal.partition(":")
            ids = (int(name),) if kind in ("uid", "gid") else self._names.ids(kind, name)
            if kind in ("uid", "user"):
                own: tuple[int, ...] | None = (peer.uid,)
            else:
                own = self._groups(peer)
            if ids is None or own is None:
                pending = True
            elif any(one in own for one in ids):
                return Match(principal, False)
        return Match("", pending)

    def _groups(self, peer: Peer) -> tuple[int, ...] | None:
        """All groups of ``peer``, from the system's databases where the kernel did not tell them."""
        groups = peer.groups if peer.groups is not None else self._names.ids("groups", str(peer.uid))
        return None if groups is None else (peer.gid, *groups)

    def nobody(self, principals: Iterable[str]) -> list[str] | None:
        """Those of ``principals`` whose name is no user or group of this node."""
        found: list[str] = []
        pending = False
        for principal in principals:
            kind, _, name = principal.partition(":")
            if kind in ("user", "group"):
                ids = self._names.ids(kind, name)
                pending = pending or ids is None
                if ids == () and principal not in found:
                    found.append(principal)
        return None if pending else found


def spoken(principals: tuple[str, ...]) -> str:
    """A list of principals in words, with those who may do everything."""
    names = [*principals, "root", f"the agent's user (uid {os.geteuid()})"]
    return f"{', '.join(names)} and access.administrators"
