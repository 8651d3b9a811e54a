"""Reading the configuration again while the agent runs: what has changed, what of it can change, and all or nothing.

``KEYS`` says of every key whether it changes at run time. A file with an error, or with a change that needs a restart,
changes nothing at all: what runs is then still what the file of the last start or reload said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog

from ocfcluster.agent.config import AgentConfig, RedundantNetwork, TopicSetting, load
from ocfcluster.agent.hooks import check_command
from ocfcluster.agent.network import families, peer_addresses, set_peers
from ocfcluster.errors import OcfError
from ocfcluster.net.transport import Address

if TYPE_CHECKING:
    from ocfcluster.agent.daemon import Agent

_AT_ONCE: Final = 4  # reads of the file that may wait for a disk or a name server
log = structlog.get_logger("ocfcluster.agent")


class When(Enum):
    """When a changed key of the file counts."""

    NOW = "now"  # with the reload
    RESTART = "restart"  # of this agent
    COMMAND = "command"  # it is the cluster's: changed by a command, and the file follows


_NOW, _RESTART, _COMMAND = When.NOW, When.RESTART, When.COMMAND
KEYS: Final[dict[str, When]] = {
    "cluster.name": _RESTART, "cluster.nodes": _COMMAND, "cluster.delivery": _RESTART,
    "cluster.bootstrap": _RESTART, "cluster.last_man_standing": _RESTART, "cluster.rejoin": _NOW,
    "node.id": _RESTART, "node.state_dir": _RESTART, "node.socket": _RESTART, "node.socket_mode": _RESTART,
    "node.event_loop": _RESTART,
    "network.transport": _RESTART, "network.interface": _RESTART, "network.group": _RESTART,
    "network.port": _RESTART, "network.unicast_port": _RESTART, "network.ttl": _RESTART,
    "network.loop": _RESTART, "network.peers": _NOW, "network.mtu": _RESTART,
    "network.segmentation": _RESTART, "network.networks": _RESTART,
    "network.networks[].interface": _RESTART, "network.networks[].name": _RESTART,
    "network.networks[].group": _RESTART, "network.networks[].port": _RESTART,
    "network.networks[].unicast_port": _RESTART, "network.networks[].peers": _NOW,
    "network.networks[].mtu": _RESTART,
    "security.insecure": _RESTART, "security.key_file": _RESTART,
    "limits.event_bytes": _RESTART, "limits.topics": _RESTART, "limits.producers_per_node": _RESTART,
    "limits.clients": _NOW, "limits.subscriptions_per_client": _NOW, "limits.window_bytes": _RESTART,
    "limits.backlog_bytes": _RESTART, "limits.receive_buffer_bytes": _RESTART,
    "timing.heartbeat_ms": _NOW, "timing.suspicion_ms": _NOW, "timing.sync_timeout_ms": _NOW,
    "timing.leave_timeout_ms": _NOW, "timing.quorum_lost_after_ms": _NOW, "timing.history_wait_ms": _NOW,
    "timing.new_history_after_s": _NOW,
    "log.level": _NOW, "log.format": _NOW,
    "hooks.command": _NOW, "hooks.topic": _NOW, "hooks.timeout_ms": _NOW,
    "access.administrators": _NOW, "access.create": _NOW,
    "components.membership": _RESTART, "components.connectivity": _RESTART,
    "topics[].name": _NOW, "topics[].scope": _COMMAND, "topics[].publish": _COMMAND,
    "topics[].subscribe": _COMMAND, "topics[].administer": _COMMAND,
    "topics[].retain_events": _COMMAND, "topics[].retain_bytes": _COMMAND, "topics[].retain_seconds": _COMMAND,
}  # fmt: skip

_COMMANDS: Final = {
    "cluster.nodes": "the node table in force is another: `ocfcluster node add | remove | votes` changes it",
    "topics[].scope": "`ocfcluster topic remove` and `create` make a new topic of that name",
    **dict.fromkeys(
        (
            "topics[].publish",
            "topics[].subscribe",
            "topics[].administer",
            "topics[].retain_events",
            "topics[].retain_bytes",
            "topics[].retain_seconds",
        ),
        "`ocfcluster topic alter` changes the settings of a topic that is there",
    ),
}


class Change(NamedTuple):
    """A key whose value differs; lists of tables have one entry per table and key: ``topics[orders].scope``."""

    key: str
    before: Any
    after: Any
    when: When
    note: str = ""  # what follows, where the key does not say it

    def document(self) -> dict[str, Any]:
        return {
            "key": self.key, "before": self.before, "after": self.after, "when": self.when.value, "note": self.note,
        }  # fmt: skip


class Plan(NamedTuple):
    """What a reload would do; ``error`` is what is wrong in ``file``, and ``refused`` what it may not change."""

    file: str
    config: AgentConfig | None
    peers: list[list[Address]]  # resolved, per network
    changes: list[Change]
    error: str = ""

    @property
    def refused(self) -> list[Change]:
        return [change for change in self.changes if change.when is not When.NOW]

    @property
    def works(self) -> bool:
        return not self.error and not self.refused

    def reason(self) -> str:
        """Why nothing changes; empty: it can."""
        if self.error:
            return self.error
        restart = [change.key for change in self.changes if change.when is When.RESTART]
        reasons = [f"{', '.join(restart)}: only with a restart of this agent"] if restart else []
        reasons += [f"{one.key}: {one.note}" for one in self.changes if one.when is When.COMMAND]
        return "; ".join(reasons)

    def document(self, *, applied: bool) -> dict[str, Any]:
        return {
            "file": self.file, "applied": applied, "works": self.works, "error": self.error,
            "reason": self.reason(), "changes": [change.document() for change in self.changes],
        }  # fmt: skip


def changes(old: AgentConfig, new: AgentConfig, table: Mapping[int, int] | None = None) -> list[Change]:
    """Every key that differs, in the order of the file's documentation. ``table``: the node table in force; a file
    that has come to say the same is no change."""
    found: list[Change] = []
    for section in AgentConfig.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        if section == "topics":
            found += _topics(before, after)
            continue
        for name in before.__struct_fields__:
            key, was, becomes = f"{section}.{name}", getattr(before, name), getattr(after, name)
            if key == "network.networks":
                found += _networks(was, becomes)
            elif key == "cluster.nodes":
                if new.cluster.table() not in (old.cluster.table(), dict(table or {})):
                    found.append(Change(key, was, becomes, KEYS[key], _COMMANDS[key]))
            elif was != becomes:
                found.append(Change(key, was, becomes, KEYS[key]))
    return found


def _networks(old: list[RedundantNetwork], new: list[RedundantNetwork]) -> Iterator[Change]:
    if len(old) != len(new):
        key = "network.networks"
        yield Change(key, _names(old), _names(new), KEYS[key])
        return
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        for name in RedundantNetwork.__struct_fields__:
            was, becomes = getattr(before, name), getattr(after, name)
            if was != becomes:
                yield Change(
                    f"network.networks[{number}].{name}", was, becomes, KEYS[f"network.networks[].{name}"]
                )


def _names(networks: list[RedundantNetwork]) -> list[str]:
    return [one.name or one.interface for one in networks]


def _topics(old: list[TopicSetting], new: list[TopicSetting]) -> Iterator[Change]:
    before = {topic.name: topic for topic in old}
    after = {topic.name: topic for topic in new}
    when = KEYS["topics[].name"]
    for name, topic in after.items():
        was = before.get(name)
        if was is None:
            yield Change(
                f"topics[{name}]", None, msgspec.to_builtins(topic), when, "is created, if it is not there"
            )
            continue
        for field in TopicSetting.__struct_fields__:
            if getattr(was, field) != getattr(topic, field):
                key = f"topics[].{field}"
                note = _COMMANDS.get(key, "")
                yield Change(
                    f"topics[{name}].{field}", getattr(was, field), getattr(topic, field), KEYS[key], note
                )
    for name, topic in before.items():
        if name not in after:
            note = "stays in the cluster; `ocfcluster topic remove` removes it"
            yield Change(f"topics[{name}]", msgspec.to_builtins(topic), None, when, note)


def plan(
    file: Path,
    running: AgentConfig,
    table: Mapping[int, int] | None,
    read: Callable[[Path], AgentConfig] = load,
) -> Plan:
    """Read the file and say what follows; changes nothing. May wait for a disk or a name server, and never raises."""
    try:
        config = read(file)
        check_command(config.hooks)
        found = _other_families(running, config, changes(running, config, table))
        peers = peer_addresses(config) if config.transport() == "unicast" else []
    except OcfError as error:
        return Plan(str(file), None, [], [], str(error).removeprefix(f"{file}: "))
    return Plan(str(file), config, peers, found)


def _other_families(old: AgentConfig, new: AgentConfig, found: list[Change]) -> list[Change]:
    """Peers that the open sockets cannot send to need a restart."""
    if families(old) == families(new):
        return found
    return [one._replace(when=When.RESTART) if one.key.endswith("peers") else one for one in found]


class Reloader:
    """Reads the process's configuration file anew when asked.

    ``running`` says what runs, ``table`` the node table in force; ``apply`` takes a plan that works, at once and whole;
    ``read`` reads the file as it was read at the start.
    """

    def __init__(
        self,
        file: Path,
        running: Callable[[], AgentConfig],
        table: Callable[[], Mapping[int, int] | None],
        apply: Callable[[Plan], None],
        prepare: Callable[..., Awaitable[Plan]],
        read: Callable[[Path], AgentConfig] = load,
    ) -> None:
        self._file = file
        self._running = running
        self._table = table
        self._apply = apply
        self._read = read
        self._prepare = prepare  # carries ``plan`` out beside the loop
        self.reloads = 0
        self.refusals = 0
        self.last_refusal = ""

    async def reload(self, *, check: bool) -> dict[str, Any]:
        """Reload, or with ``check`` only say what would be; the document of docs/cli.md."""
        while True:
            running = self._running()
            planned = await self._prepare(plan, self._file, running, self._table(), self._read)
            if (
                self._running() is running
            ):  # else another reload was quicker: what it changed is no change any more
                break
        if check:
            return planned.document(applied=False)
        if planned.works:
            self._apply(planned)
            self.reloads += 1
            changed = [change.key for change in planned.changes]
            log.info("configuration read again", file=planned.file, changed=changed)
        else:
            self.refusals += 1
            self.last_refusal = planned.reason()
            log.error(
                "configuration not taken, nothing has changed", file=planned.file, reason=planned.reason()
            )
        return planned.document(applied=planned.works)

    def document(self) -> dict[str, Any]:
        """For the status."""
        return {
            "file": str(self._file),
            "reloads": self.reloads,
            "refusals": self.refusals,
            "last_refusal": self.last_refusal,
        }


class Reloading:
    """One agent's side: what programs ask, and what changes in it. ``reloader`` is the process's."""

    __slots__ = ("reloader", "_agent", "_tasks")

    def __init__(self, agent: Agent) -> None:
        self.reloader: Reloader | None = None  # the process was started without a file
        self._agent = agent
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, check: bool, then: Callable[[dict[str, Any]], None]) -> str:
        """Read the configuration again, or say what that would change; why it cannot be. Empty: ``then`` is told."""
        if self.reloader is None:
            return "this agent was started without a configuration file: there is nothing to read again"
        if len(self._tasks) >= _AT_ONCE:
            return "the configuration is being read already; ask again when that is done"

        async def reload(reloader: Reloader) -> None:
            then(await reloader.reload(check=check))
            self._agent.settle(time.monotonic_ns())

        task = asyncio.get_running_loop().create_task(reload(self.reloader))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ""

    def apply(self, plan: Plan) -> None:
        """What has changed in the configuration counts from here on."""
        agent, config = self._agent, plan.config
        if config is None:
            raise RuntimeError("a plan without a configuration")
        before = configured_topics(agent.config)
        agent.config = config
        if agent.closed:
            return
        now = time.monotonic_ns()
        agent.node.retime(config.times(), now)
        agent.requests.permissions.configure(config.access)
        if config.transport() == "unicast":
            set_peers(agent.transport, plan.peers)
        if agent.topics_asked:  # else all of them are made when the cluster has formed
            for name, topic in configured_topics(config).items():
                if name not in before:
                    agent.create_topic(topic)
        agent.settle(now)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


def configured_topics(config: AgentConfig) -> dict[str, TopicSetting]:
    """The topics that the configuration asks for, by name; the hook's is among them."""
    topics = {topic.name: topic for topic in config.topics}
    if config.hooks.topic:
        topics.setdefault(config.hooks.topic, TopicSetting(config.hooks.topic, "local"))
    return topics
