"""What a topic is set up with: how much of it is kept, and who may use it. Part of the replicated state."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ocfcluster.limits import PRINCIPAL_BYTES, PRINCIPALS_PER_RIGHT, RETAINED_BYTES_PER_TOPIC

_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
ANYBODY = "*"


class Retention(msgspec.Struct, array_like=True, frozen=True, order=True, repr_omit_defaults=True):
    """The newest events that are kept for subscribers who begin earlier than now: as many as all three bounds allow.

    0 is no bound of that kind; all three 0: nothing is kept. ``bytes`` are those in memory: of whole runs, with
    headers and properties, and ``limits.RETAINED_RUN_OVERHEAD_BYTES`` for each run. Where something is kept, at most
    ``limits.RETAINED_BYTES_PER_TOPIC`` of them are. ``seconds`` are between an event's place in the order and the
    newest one there: in a cluster where nothing is ordered nothing grows old. A change of the view is ordered, too.
    """

    events: _U32 = 0
    bytes: _U32 = 0
    seconds: _U32 = 0

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return bool(self.events or self.bytes or self.seconds)


class Access(msgspec.Struct, array_like=True, frozen=True, order=True, repr_omit_defaults=True):
    """Who may publish, subscribe, and administer (alter and remove), as lists of principals.

    A principal is ``user:NAME``, ``uid:NUMBER``, ``group:NAME``, ``gid:NUMBER``, or ``*`` for anybody. Root, the
    agent's own user and the node's administrators may do everything. Names are looked up on the node whose program
    asks.
    """

    publish: tuple[str, ...] = (ANYBODY,)
    subscribe: tuple[str, ...] = (ANYBODY,)
    administer: tuple[str, ...] = ()


class TopicSettings(msgspec.Struct, array_like=True, frozen=True, order=True, repr_omit_defaults=True):
    """All that can be altered of a topic while it lives."""

    retention: Retention = Retention()
    access: Access = Access()


DEFAULT_SETTINGS = TopicSettings()


def settings_fault(settings: TopicSettings) -> str:
    """What is wrong with the values; empty: nothing."""
    retention, access = settings.retention, settings.access
    if retention.bytes > RETAINED_BYTES_PER_TOPIC:
        return f"retention of {retention.bytes} bytes; at most {RETAINED_BYTES_PER_TOPIC} are allowed"
    for right in ("publish", "subscribe", "administer"):
        principals: tuple[str, ...] = getattr(access, right)
        if len(principals) > PRINCIPALS_PER_RIGHT:
            return f"{len(principals)} principals may {right}; at most {PRINCIPALS_PER_RIGHT} are allowed"
        for principal in principals:
            fault = principal_fault(principal)
            if fault:
                return f"who may {right}: {fault}"
    return ""


def principal_fault(principal: str) -> str:
    """What is wrong with one principal; empty: nothing."""
    kind, _, name = principal.partition(":")
    good = principal == ANYBODY or (
        0 < len(name.encode(errors="replace")) <= PRINCIPAL_BYTES
        and (kind in ("user", "group") or (kind in ("uid", "gid") and name.isascii() and name.isdecimal()))
        and name.isprintable()
    )
    if good:
        return ""
    return f"{principal!r:.80} is none of user:NAME, uid:NUMBER, group:NAME, gid:NUMBER, *"
