"""The agent's key file: read with its permissions checked, and read again when keys are changed while the agent runs.

The file is the truth. What runs is what it said when it was read last, and a change of it is taken only where no
member of the cluster is lost by it: a key that seals must be known to every member, one that goes must be used by
none.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from ocfcluster import limits
from ocfcluster.agent.channel import Sealing
from ocfcluster.errors import ConfigurationError
from ocfcluster.net.sealed import PeerKeys, SealedTraffic
from ocfcluster.net.transport import Address, Received, Transport
from ocfcluster.wire import sealing
from ocfcluster.wire.frames import Administer, Administration
from ocfcluster.wire.keys import ClusterKey, parse_keys

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

_MAKE: Final = "ocfcluster keygen makes one"
_ADVICE: Final = {
    sealing.UNSEALED: "a node of this cluster sends in the clear: it has no security.key_file",
    sealing.UNKNOWN_KEY: "a node seals with a key that is not in this node's key file: ocfcluster key add",
    sealing.FORGED: "it does not open: another key or cluster name at its sender, a damaged or a forged datagram",
    sealing.FOREIGN: "it is of another cluster or program",
    sealing.WRONG_VERSION: "its sender speaks another version of the protocol",
    sealing.MALFORMED: "it is too short to be sealed",
    sealing.REPLAYED: "it was sent again",
}

Members = Sequence[tuple[int, int]]  # the view's other members: node_id, incarnation
log = structlog.get_logger("ocfcluster.agent")


def read_key_file(
    path: str | os.PathLike[str], *, own: bool = True, named: str = "security.key_file: "
) -> list[ClusterKey]:
    """The keys of a file that nobody but its owner can read or write, the first being the one that seals.

    The owner must be root or this user. Its group may read it where that is the group that this process runs as. With
    ``own`` False it is an agent's, of another user perhaps, who looks at that itself. Raises ConfigurationError:
    ``named``, which is where the path comes from, the file, and what to do about it.
    """
    file = Path(path)
    try:
        # Not a path that is looked at twice: what is checked is what is read.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigurationError(f"{named}{file} is not there; {_MAKE}") from None
    except OSError as error:
        raise ConfigurationError(
            f"{named}{file}: {error.strerror} (the agent runs as uid {os.geteuid()})"
        ) from None
    try:
        fault = _permission_fault(os.fstat(descriptor)) if own else ""
        if fault:
            raise ConfigurationError(f"{named}{file} {fault}")
        data = os.read(descriptor, limits.KEY_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    try:
        return parse_keys(data.decode())
    except UnicodeDecodeError:
        raise ConfigurationError(f"{named}{file}: is no text; {_MAKE}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{named}{file}: {error}") from None


def _permission_fault(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {found.st_uid}: it must be root's or this user's (chown)"
    mode = stat.S_IMODE(found.st_mode)
    allowed = 0o740 if found.st_gid in (os.getegid(), *os.getgroups()) and found.st_uid == 0 else 0o700
    if mode & ~allowed & 0o7777:
        return (
            f"has mode {mode:04o}: others than its owner can read or write it. chmod 0600; or 0640, where it "
            "is root's and its group the agent's"
        )
    return ""


class Traffic(Protocol):
    """What a node's effects go out by, and its datagrams come in by."""

    def multicast(self, buffer: bytes, segment: int) -> None: ...
    def send(self, address: Address, buffer: bytes, segment: int) -> None: ...
    def receive(self, limit: int) -> list[Received]: ...


class NoKeys:
    """An agent that seals nothing: on loopback, or told to."""

    __slots__ = ("sealing",)

    def __init__(self) -> None:
        self.sealing = Sealing("", ())

    def seal(self, transport: Traffic, cluster: str, node_id: int, incarnation: int) -> Traffic:
        return transport

    def load(self, members: Members, table: Container[int], *, force: bool = False) -> None:
        raise ConfigurationError("security.key_file: this agent has none, and seals nothing")

    def fault(self, key_ids: Sequence[str], members: Members, table: Container[int]) -> str:
        return "this agent has no security.key_file, and seals nothing"

    def counters(self) -> dict[str, int]:
        return {}

    def document(self, own: int, members: Members) -> dict[str, Any]:
        return {"sealed": False, "key_file": "", "seals_with": "", "accepts": [], "members": []}


class KeyRing:
    """The keys of one agent."""

    __slots__ = ("keys", "path", "sealing", "_traffic")

    def __init__(self, path: str, keys: Sequence[ClusterKey], cluster: str) -> None:
        self.path = path
        self.keys = list(keys)
        self.sealing = Sealing(cluster, keys)
        self._traffic: SealedTraffic | None = None

    def seal(self, transport: Transport, cluster: str, node_id: int, incarnation: int) -> SealedTraffic:
        """What stands before ``transport``, and seals and opens with these keys."""
        sealed = SealedTraffic(transport, cluster, node_id, incarnation, self.keys, _complain)
        self._traffic = sealed
        return sealed

    # --- changes --------------------------------------------------------------------------------------------------

    def load(self, members: Members, table: Container[int], *, force: bool = False) -> None:
        """Take what the file says now. Raises ConfigurationError where it cannot be read or, without ``force``, is
        refused; the keys that were there stay then."""
        keys = read_key_file(self.path)
        fault = "" if force else self.fault([key.id for key in keys], members, table)
        if fault:
            raise ConfigurationError(fault)
        before = self.keys
        self.keys = self.sealing.keys = keys
        if self._traffic is not None:
            self._traffic.use(keys)
        if [key.id for key in before] != [key.id for key in keys]:
            log.info("keys", seals=keys[0].id, accepts=[key.id for key in keys])

    def fault(self, key_ids: Sequence[str], members: Members, table: Container[int]) -> str:
        """Why this node may not have just these keys, of which the first one seals; empty: it may.

        The members count, and who else of the node ``table`` has been heard of late.
        """
        if not key_ids:
            return "no key would be left"
        own = [key.id for key in self.keys]
        if key_ids[0] != own[0]:
            missing = self._where(members, table, lambda said: said is None or key_ids[0] not in said)
            if missing:
                return (
                    f"{_nodes(missing)} not said that it has key {key_ids[0]}: ocfcluster key add there first"
                )
        for gone in (key_id for key_id in own if key_id not in key_ids):
            using = self._where(members, table, lambda said, gone=gone: said is None or said[0] == gone)  # type: ignore[misc]
            if using:
                return (
                    f"{_nodes(using)} not said that it seals with another key than {gone}: "
                    "ocfcluster key use there first"
                )
        return ""

    def _where(
        self, members: Members, table: Container[int], wanted: Callable[[tuple[str, ...] | None], bool]
    ) -> list[int]:
        """Nodes of whose last report, None where there is none of late, this is so."""
        heard = self._heard()
        asked = {*members, *(sender for sender in heard if sender[0] in table)}
        return sorted({sender[0] for sender in asked if wanted(heard.get(sender))})

    def counters(self) -> dict[str, int]:
        return {} if self._traffic is None else self._traffic.counters

    def _heard(self) -> dict[tuple[int, int], tuple[str, ...]]:
        peers: Mapping[tuple[int, int], PeerKeys] = {} if self._traffic is None else self._traffic.peer_keys
        oldest = time.monotonic_ns() - limits.KEY_REPORT_OLD_NS
        return {sender: said.key_ids for sender, said in peers.items() if said.heard_at > oldest}

    # --- status ---------------------------------------------------------------------------------------------------

    def document(self, own: int, members: Members) -> dict[str, Any]:
        """What status and `ocfcluster key status` show. No key is in it, nor anything that one could be made of."""
        heard = self._heard()
        others = [
            {"node_id": member[0], "key_ids": list(heard.get(member, ()))}
            for member in sorted({*members, *heard})
        ]
        key_ids = [key.id for key in self.keys]
        return {
            "sealed": True,
            "key_file": self.path,
            "seals_with": key_ids[0],
            "accepts": key_ids,
            "members": [{"node_id": own, "key_ids": key_ids}, *others],
        }


def open_keys(path: str, cluster: str) -> KeyRing | None:
    """The keys of a configuration; None where it names no file. Raises ConfigurationError."""
    return KeyRing(path, read_key_file(path), cluster) if path else None


def other_members(agent: Agent) -> list[tuple[int, int]]:
    """(node_id, incarnation) of the view's members but this node."""
    configuration = agent.node.configuration
    members = [] if configuration is None else configuration.members
    return [(one.node_id, one.incarnation) for one in members if one.node_id != agent.config.node.id]


def change_keys(agent: Agent, asked: Administer) -> str:
    """What an operator asks about the key file; empty, or why it is refused."""
    configuration = agent.node.configuration
    table = agent.config.cluster.table() if configuration is None else configuration.table
    if asked.command == Administration.KEYS_CHECK:
        return agent.keys.fault(asked.keys, other_members(agent), table)
    force = asked.command == Administration.KEYS_LOAD_FORCED
    try:
        agent.keys.load(other_members(agent), table, force=force)
    except ConfigurationError as error:
        return str(error)
    return ""


def _nodes(numbers: Sequence[int]) -> str:
    names = ", ".join(map(str, numbers))
    return f"node {names} has" if len(numbers) == 1 else f"nodes {names} have"


def _complain(refusal: str, source: Address) -> None:
    log.warning("datagram dropped", source=str(source[0]), reason=_ADVICE.get(refusal, refusal))
