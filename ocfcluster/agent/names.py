"""Names of topics as clients may give them."""

from __future__ import annotations

import errno
from typing import Final

from ocfcluster.limits import GROUP_PREFIX, TOPIC_NAME_BYTES
from ocfcluster.protocol.state import reserved, valid_name

# What draft 0.3 called the pre-created topics.
ALIASES: Final = {
    "__OC_EV_MEMB_CLASS": "oc.membership",
    "__OC_EV_CONN_CLASS": "oc.connectivity",
}


def canonical(name: str) -> str:
    """The name a topic is kept under."""
    return ALIASES.get(name, name)


def aliases_of(name: str) -> list[str]:
    return [alias for alias, meant in ALIASES.items() if meant == name]


def name_fault(name: str) -> str:
    """Why no topic can have this name; empty: it is well formed."""
    if not valid_name(name):
        return f"topic {name!r:.80}: names have 1 to {TOPIC_NAME_BYTES} bytes of UTF-8 and no NUL"
    if name == GROUP_PREFIX:
        return f"topic {name!r}: a group has a name behind it"
    return ""


def scope_is_local(name: str, local: bool) -> bool:
    """Rules for groups carry no events, so they are of scope local whatever was asked for."""
    return local or name.startswith(GROUP_PREFIX)


def administration_fault(name: str) -> tuple[int, str]:
    """Why clients cannot create or remove a topic of this name: an errno and a sentence, or (0, "")."""
    fault = name_fault(name)
    if fault:
        return errno.EINVAL, fault
    if "*" in name[:-1] and name.startswith(GROUP_PREFIX):
        return (
            errno.EINVAL,
            f"topic {name!r}: the rule for groups is {GROUP_PREFIX}NAME or {GROUP_PREFIX}BEGINNING*",
        )
    if reserved(name):
        return errno.EPERM, f"topic {name!r} is reserved for the cluster itself"
    return 0, ""
