"""Options that say who may use a topic, and the answer to who may."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from ocfcluster.cli import output
from ocfcluster.errors import UnknownTopic
from ocfcluster.limits import RESERVED_PREFIX
from ocfcluster.wire.topics import ANYBODY, Access, TopicSettings, principal_fault

if TYPE_CHECKING:
    from ocfcluster.client import Client
    from ocfcluster.wire.frames import TopicAccess

NOBODY = "none"  # beside those who may do everything
_WHO = "user:NAME, uid:NUMBER, group:NAME, gid:NUMBER, * for anybody or none; again for more"


def _option(name: str, does: str) -> Any:
    return typer.Option(f"--{name}", metavar="WHO", help=f"Who may {does}: {_WHO}.", show_default=False)


Publish = Annotated[list[str] | None, _option("publish", "publish")]
Subscribe = Annotated[list[str] | None, _option("subscribe", "subscribe")]
Administer = Annotated[list[str] | None, _option("administer", "alter and remove it")]


def altered(
    settings: TopicSettings,
    publish: list[str] | None,
    subscribe: list[str] | None,
    administer: list[str] | None,
) -> TopicSettings:
    """``settings`` with the lists that were given in the place of its own."""
    for one in (*(publish or ()), *(subscribe or ()), *(administer or ())):
        fault = "" if one == NOBODY else principal_fault(one)
        if fault:
            raise typer.BadParameter(f"{fault}, {NOBODY}")
    given = {"publish": publish, "subscribe": subscribe, "administer": administer}
    changes = {
        right: tuple(one for one in who if one != NOBODY) for right, who in given.items() if who is not None
    }
    access = msgspec.structs.replace(settings.access, **changes)
    return msgspec.structs.replace(settings, access=access)


def rule_of(client: Client, name: str) -> TopicSettings:
    """The settings of a rule for groups. Raises UnknownTopic where there is none of just this name."""
    rights = client.access(name)
    if rights.rule != name:
        raise UnknownTopic(f"there is no rule {name!r}: create it")
    return TopicSettings(access=Access(**{grant.right: tuple(grant.principals) for grant in rights.grants}))


def lists(access: Access) -> dict[str, list[str]]:
    """The lists as plain values."""
    return {right: list(getattr(access, right)) for right in access.__struct_fields__}


def document(rights: TopicAccess) -> dict[str, Any]:
    """The answer as plain values."""
    return {
        "topic": rights.topic, "rule": rights.rule,
        "access": {grant.right: grant.principals for grant in rights.grants},
        "you": {
            "uid": rights.uid,
            **{grant.right: {"allowed": grant.allowed, "why": grant.why} for grant in rights.grants},
        },
        "unknown": rights.unknown,
    }  # fmt: skip


def rows(rights: TopicAccess) -> Iterator[tuple[str, str]]:
    """The answer for people: a heading and a text in each row."""
    if rights.rule:
        yield "rule", output.printable(rights.rule)
    reserved = rights.topic.startswith(RESERVED_PREFIX)  # there not even root may
    for grant in rights.grants:
        who = (
            "anybody"
            if ANYBODY in grant.principals
            else ", ".join(grant.principals) or ("the cluster itself" if reserved else "administrators alone")
        )
        yield grant.right, output.printable(who)
    yield "you are", f"uid {rights.uid}"
    for grant in rights.grants:
        yield f"you {grant.right}", f"{'yes' if grant.allowed else 'no'}: {output.printable(grant.why)}"
    if rights.unknown:
        yield "not on this node", output.printable(", ".join(rights.unknown))
