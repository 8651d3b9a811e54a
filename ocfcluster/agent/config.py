"""The agent's configuration: TOML, typed, nothing unknown accepted. docs/configuration.md describes every key."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from ocfcluster import limits
from ocfcluster.agent.names import administration_fault
from ocfcluster.client.locate import default_socket_path
from ocfcluster.errors import ConfigurationError, SetupError
from ocfcluster.limits import MILLISECOND_NS, SECOND_NS
from ocfcluster.protocol.settings import Limits as ReplicatedLimits
from ocfcluster.protocol.settings import Timing as NodeTiming
from ocfcluster.wire.topics import (
    ANYBODY,
    Access,
    Retention,
    TopicSettings,
    principal_fault,
    settings_fault,
)

LOOPBACK_INTERFACE: Final = "lo"
NODE_ID_MAXIMUM: Final = 0xFFFF_FFFF
VOTES_MAXIMUM: Final = 255
NEW_HISTORY_AFTER_MOST_S: Final = 366 * 24 * 3600

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
NodeId = Annotated[int, msgspec.Meta(ge=1, le=NODE_ID_MAXIMUM)]
Votes = Annotated[int, msgspec.Meta(ge=0, le=VOTES_MAXIMUM)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=3_600_000)]
EventBytes = Annotated[int, msgspec.Meta(ge=1024, le=limits.EVENT_BYTES_CEILING)]
Count = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
Mtu = Annotated[int, msgspec.Meta(ge=limits.MTU_MINIMUM, le=limits.MTU_MAXIMUM)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the tables of a configuration file."""


class Cluster(Section, frozen=True):
    name: str = "ocfcluster"
    nodes: dict[NodeId, Votes] | list[NodeId] = []
    delivery: Literal["safe", "agreed"] = "safe"
    bootstrap: Literal["all", "majority"] = "all"
    last_man_standing: bool = False
    rejoin: bool = True

    def table(self) -> dict[int, int]:
        """node_id → votes; empty where no table is configured."""
        nodes = self.nodes
        return dict(nodes) if isinstance(nodes, dict) else dict.fromkeys(nodes, 1)


class Node(Section, frozen=True):
    id: NodeId = 1
    state_dir: str = ""
    socket: str = ""
    socket_mode: Annotated[str, msgspec.Meta(pattern="^0[0-7]{3}$")] = "0660"
    event_loop: Literal["asyncio", "uvloop"] = "asyncio"


class RedundantNetwork(Section, frozen=True):
    """One of several networks; what it does not say is as in ``[network]``."""

    interface: str
    name: str = ""
    group: str = ""
    port: Port | None = None
    unicast_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    peers: list[str] = []
    mtu: Mtu | None = None


class Network(Section, frozen=True):
    transport: Literal["multicast", "unicast", "memory"] | None = None
    interface: str = ""
    group: str = "239.192.77.1"
    port: Port = 5405
    unicast_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    ttl: Annotated[int, msgspec.Meta(ge=1, le=255)] = 1
    loop: bool | Literal["auto"] = "auto"
    peers: list[str] = []
    mtu: Mtu | None = None
    segmentation: bool = True
    networks: list[RedundantNetwork] = []

    def all(self) -> list[RedundantNetwork]:
        """Every network of this node, whole and with its name, however the file says it."""
        if not self.networks:
            only = self.interface or LOOPBACK_INTERFACE
            return [
                RedundantNetwork(only, only, self.group, self.port, self.unicast_port, self.peers, self.mtu)
            ]
        return [
            RedundantNetwork(
                one.interface, one.name or one.interface, one.group or self.group, one.port or self.port,
                one.unicast_port, one.peers, one.mtu or self.mtu,
            )
            for one in self.networks
        ]  # fmt: skip


class Security(Section, frozen=True):
    key_file: str = ""
    insecure: bool = False


class Limits(Section, frozen=True):
    event_bytes: EventBytes = limits.EVENT_BYTES_DEFAULT
    topics: Annotated[int, msgspec.Meta(ge=1, le=limits.TOPICS)] = limits.TOPICS
    producers_per_node: Annotated[int, msgspec.Meta(ge=1, le=limits.PRODUCERS_PER_NODE)] = (
        limits.PRODUCERS_PER_NODE
    )
    clients: Annotated[int, msgspec.Meta(ge=1, le=limits.CLIENTS)] = limits.CLIENTS
    subscriptions_per_client: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = limits.SUBSCRIPTIONS_PER_CLIENT
    window_bytes: Annotated[int, msgspec.Meta(ge=65_536, le=limits.WINDOW_BYTES)] = limits.WINDOW_BYTES
    backlog_bytes: Annotated[int, msgspec.Meta(ge=limits.MIB, le=limits.BACKLOG_BYTES)] = limits.BACKLOG_BYTES
    receive_buffer_bytes: Annotated[
        int, msgspec.Meta(ge=limits.RECEIVE_BUFFER_FLOOR_BYTES, le=1024 * limits.MIB)
    ] = limits.RECEIVE_BUFFER_BYTES


class AccessSection(Section, frozen=True):
    administrators: tuple[str, ...] = ()
    create: tuple[str, ...] = ()


class Components(Section, frozen=True):
    membership: Literal["builtin", "external"] = "builtin"
    connectivity: Literal["builtin", "external"] = "builtin"


class TopicSetting(Section, frozen=True):
    name: str
    scope: Literal["global", "local"] = "global"
    publish: tuple[str, ...] = (ANYBODY,)
    subscribe: tuple[str, ...] = (ANYBODY,)
    administer: tuple[str, ...] = ()
    retain_events: Count = 0
    retain_bytes: Annotated[int, msgspec.Meta(ge=0, le=limits.RETAINED_BYTES_PER_TOPIC)] = 0
    retain_seconds: Count = 0

    def settings(self) -> TopicSettings:
        """As the cluster keeps them."""
        return TopicSettings(
            Retention(self.retain_events, self.retain_bytes, self.retain_seconds),
            Access(self.publish, self.subscribe, self.administer),
        )


class Timing(Section, frozen=True):
    heartbeat_ms: Milliseconds = limits.HEARTBEAT_NS // limits.MILLISECOND_NS
    suspicion_ms: Milliseconds = limits.SUSPICION_NS // limits.MILLISECOND_NS
    sync_timeout_ms: Milliseconds = limits.SYNC_TIMEOUT_NS // limits.MILLISECOND_NS
    leave_timeout_ms: Milliseconds = limits.LEAVE_TIMEOUT_NS // limits.MILLISECOND_NS
    quorum_lost_after_ms: Milliseconds = limits.QUORUM_LOST_AFTER_NS // limits.MILLISECOND_NS
    history_wait_ms: Milliseconds = limits.HISTORY_WAIT_NS // limits.MILLISECOND_NS
    new_history_after_s: Annotated[int, msgspec.Meta(ge=0, le=NEW_HISTORY_AFTER_MOST_S)] = 0


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Hooks(Section, frozen=True):
    command: list[str] = []
    topic: str = ""
    timeout_ms: Milliseconds = limits.HOOK_NS // limits.MILLISECOND_NS


class AgentConfig(Section, frozen=True):
    """A whole configuration. As made by the constructor alone: one development node, on loopback."""

    cluster: Cluster = Cluster()
    node: Node = Node()
    network: Network = Network()
    security: Security = Security()
    limits: Limits = Limits()
    timing: Timing = Timing()
    log: Log = Log()
    hooks: Hooks = Hooks()
    access: AccessSection = AccessSection()
    components: Components = Components()
    topics: list[TopicSetting] = []

    def socket_path(self) -> str:
        return self.node.socket or default_socket_path()

    def state_path(self) -> Path:
        """The state directory: the one that is named, else beside the socket."""
        return Path(self.node.state_dir or f"{self.socket_path()}.state")

    def transport(self) -> Literal["multicast", "unicast", "memory"]:
        """The chosen one; where none is chosen, multicast for a cluster and memory for a node that is alone."""
        if self.network.transport is not None:
            return self.network.transport
        return "multicast" if len(self.cluster.table()) > 1 else "memory"

    def times(self) -> NodeTiming:
        timing = self.timing
        return NodeTiming(
            heartbeat_ns=timing.heartbeat_ms * MILLISECOND_NS,
            suspicion_ns=timing.suspicion_ms * MILLISECOND_NS,
            sync_timeout_ns=timing.sync_timeout_ms * MILLISECOND_NS,
            leave_timeout_ns=timing.leave_timeout_ms * MILLISECOND_NS,
            quorum_lost_after_ns=timing.quorum_lost_after_ms * MILLISECOND_NS,
            history_wait_ns=timing.history_wait_ms * MILLISECOND_NS,
            new_history_after_ns=timing.new_history_after_s * SECOND_NS,
        )

    def replicated_limits(self) -> ReplicatedLimits:
        return ReplicatedLimits(
            event_bytes=self.limits.event_bytes,
            topics=self.limits.topics,
            producers_per_node=self.limits.producers_per_node,
        )


def load(path: str | os.PathLike[str], *, insecure: bool = False) -> AgentConfig:
    """The configuration in the file ``path``; ``insecure``: with ``security.insecure``, whatever it says.
    Raises ConfigurationError: the key, the file, what would be right."""
    file = Path(path)
    try:
        text = file.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: is not UTF-8 (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: is not TOML: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{file}: is nested too deeply") from None
    except ValueError:  # what Python does not convert, of more than 4300 digits
        raise ConfigurationError(f"{file}: has a number with too many digits") from None
    try:
        config = msgspec.convert(document, AgentConfig, str_keys=True)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{file}: {_explain(str(error), document)}") from None
    if insecure:
        security = msgspec.structs.replace(config.security, insecure=True)
        config = msgspec.structs.replace(config, security=security)
    problem = _impossible(config, document)
    if problem:
        raise ConfigurationError(f"{file}: {problem}")
    return config


_ABOUT_A_KEY: Final = re.compile(r"(network '[^']*': )?[a-z]+\.[a-z_]+: ")


@contextmanager
def configured_by(file: Path | None) -> Iterator[None]:
    """What is found wrong with a key only when it is used is said with the ``file`` that it is from, as ``load`` says
    it; None: it is from none. A machine that is not ready is not the file's fault, unless a key is named first."""
    try:
        yield
    except (ConfigurationError, SetupError) as error:
        if file is None or not (isinstance(error, ConfigurationError) or _ABOUT_A_KEY.match(str(error))):
            raise
        raise type(error)(f"{file}: {error}") from error


_SECTIONS: Final[dict[str, type[Section]]] = {
    "": AgentConfig, "cluster": Cluster, "node": Node, "network": Network, "security": Security, "limits": Limits,
    "timing": Timing, "log": Log, "hooks": Hooks, "access": AccessSection, "components": Components,
    "topics": TopicSetting, "network.networks": RedundantNetwork,
}  # fmt: skip
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `(?P<name>[^`]*)`$")
_EXPECTED: Final = re.compile(
    r"^Expected `(?P<expected>[^`]*)`(?P<bound> [<>=]+ [-0-9]+)?(?:, got `(?P<got>[^`]*)`)?"
)
_MISSING: Final = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")
_TOML_NAMES: Final = {
    "int": "a whole number", "str": "text in quotes", "bool": "true or false", "array": "a list [...]",
    "object": "a table", "null": "nothing", "float": "a floating-point number",
}  # fmt: skip


def _explain(message: str, document: dict[str, Any]) -> str:
    """msgspec's message about ``document`` in terms of the file: the key first, then what would be right."""
    match = _AT.match(message)
    what, where = (match["what"], match["where"] or "") if match else (message, "")
    key = where.replace("[...]", "")
    section = key.split(".")[0].split("[")[0]
    if key.startswith("network.networks["):
        section = "network.networks"
    unknown = _UNKNOWN.match(what)
    if unknown:
        name = f"{key}.{unknown['name']}" if key else unknown["name"]
        known = ", ".join(sorted(_SECTIONS[section].__struct_fields__))
        return f"{name}: unknown key; known here: {known}"
    missing = _MISSING.match(what)
    if missing:
        return f"{key}.{missing['name']}: is missing; each of {section} needs one"
    if key == "cluster.nodes" and isinstance(document["cluster"]["nodes"], dict):
        return _wrong_node(document["cluster"]["nodes"])
    expected = _EXPECTED.match(what)
    if "matching regex" in what:
        return f"{key}: is malformed{_choices(section, key)}"
    if expected:
        wanted = " or ".join(_TOML_NAMES.get(kind.strip(), kind) for kind in expected["expected"].split("|"))
        got = f", not {_TOML_NAMES.get(expected['got'], expected['got'])}" if expected["got"] else ""
        return f"{key}: must be {wanted}{expected['bound'] or ''}{got}"
    return f"{key}: {what[0].lower()}{what[1:]}{_choices(section, key)}"


def _wrong_node(nodes: dict[str, Any]) -> str:
    """The first entry of a node table that is none; msgspec's message does not tell it from the others."""
    for node_id, votes in nodes.items():
        try:
            msgspec.convert({node_id: votes}, dict[NodeId, Votes], str_keys=True)
        except msgspec.ValidationError:
            entry = f"{node_id!r} = {votes!r}"
            return (
                f"cluster.nodes: {entry:.80}: a node's id is a whole number from 1 to {NODE_ID_MAXIMUM}, "
                f"its votes are one from 0 to {VOTES_MAXIMUM}"
            )
    raise RuntimeError("a node table that is wrong, and no entry of it is")


def _choices(section: str, key: str) -> str:
    """The allowed values of a key that has only a few."""
    field = key.rpartition(".")[2]
    choices = {
        "delivery": '"safe" or "agreed"', "transport": '"multicast", "unicast" or "memory"',
        "scope": '"global" or "local"', "loop": 'true, false or "auto"', "level": "debug, info, warning or error",
        "format": "auto, console or json", "event_loop": '"asyncio" or "uvloop"',
        "membership": '"builtin" or "external"', "connectivity": '"builtin" or "external"',
        "bootstrap": '"all" or "majority"', "socket_mode": 'an octal mode of four digits as "0660"',
    }  # fmt: skip
    return f"; right would be {choices[field]}" if section and field in choices else ""


def _impossible(config: AgentConfig, document: dict[str, Any]) -> str:
    """What in a well-typed configuration cannot be meant; empty: nothing."""
    return (
        _impossible_security(config)
        or _impossible_cluster(config, document)
        or _impossible_network(config)
        or _impossible_values(config)
        or _impossible_access(config)
        or _impossible_topics(config)
        or _impossible_hooks(config)
    )


def _impossible_security(config: AgentConfig) -> str:
    if config.security.key_file and config.security.insecure:
        return (
            "security.insecure: says that nothing is sealed, and security.key_file that everything is; "
            "remove one of the two"
        )
    return ""


def _impossible_cluster(config: AgentConfig, document: dict[str, Any]) -> str:
    table = config.cluster.table()
    nodes = config.cluster.nodes
    name_bytes = len(config.cluster.name.encode())
    if not 1 <= name_bytes <= limits.CLUSTER_NAME_BYTES:
        return f"cluster.name: must have 1 to {limits.CLUSTER_NAME_BYTES} bytes of UTF-8, not {name_bytes}"
    if not table and "nodes" in document.get("cluster", {}):
        return "cluster.nodes: names no node; name each of the cluster's, or remove it for one that is alone"
    if len(table) > limits.NODES:
        return f"cluster.nodes: names {len(table)} nodes; at most {limits.NODES} are supported"
    if not isinstance(nodes, dict) and len(table) != len(nodes):
        return "cluster.nodes: names a node twice; each id once, or { id = votes }"
    if table and not sum(table.values()):
        return "cluster.nodes: nobody has a vote; give at least one node 1"
    if len(table) > 1 and "id" not in document.get("node", {}):
        return f"node.id: is missing; which of {_list(table)} is this node?"
    if table and config.node.id not in table:
        return f"node.id: {config.node.id} is not in cluster.nodes ({_list(table)}); correct one of them"
    if not table and config.network.transport in ("multicast", "unicast"):
        return (
            "cluster.nodes: is missing; with a network the cluster needs its node table, the same on every node: "
            "nodes = [1, 2, 3]"
        )
    return _impossible_recovery(config)


def _impossible_recovery(config: AgentConfig) -> str:
    cluster = config.cluster
    if not cluster.table() and (cluster.bootstrap != "all" or cluster.last_man_standing):
        key = "last_man_standing" if cluster.last_man_standing else "bootstrap"
        return f"cluster.{key}: says nothing without cluster.nodes, the table whose votes it is about"
    if cluster.last_man_standing and not config.node.state_dir:
        return (
            "cluster.last_man_standing: needs a state directory that outlives the machine: name one on a disk as "
            "node.state_dir"
        )
    return ""


def _impossible_network(config: AgentConfig) -> str:
    network = config.network
    transport = config.transport()
    if transport == "memory" and len(config.cluster.table()) > 1:
        return 'network.transport: "memory" reaches no other node; several cluster.nodes need "multicast" or "unicast"'
    if network.networks:
        fault = _impossible_networks(network, transport)
        if fault:
            return fault
    for number, one in enumerate(network.all()):
        fault = _impossible_path(one, transport)
        if fault:
            return (f"network.networks[{number}]." if network.networks else "network.") + fault
    return ""


def _impossible_networks(network: Network, transport: str) -> str:
    """What cannot be meant by several networks together."""
    if transport == "memory":
        return 'network.networks: transport "memory" has no network; remove one of the two'
    if len(network.networks) > limits.NETWORKS:
        return f"network.networks: names {len(network.networks)}; at most {limits.NETWORKS} are supported"
    if network.interface or network.unicast_port or network.peers:
        key = "interface" if network.interface else "unicast_port" if network.unicast_port else "peers"
        return f"network.{key}: each of network.networks has its own; move it there"
    names: set[str] = set()
    ends: set[tuple[str, str, int | None]] = set()
    for number, one in enumerate(network.all()):
        key = f"network.networks[{number}]"
        if one.name in names:
            return f"{key}.name: {one.name!r} is there twice; give each network a name of its own"
        end = (one.interface, one.group if transport == "multicast" else "", one.port)
        if end in ends:
            return f"{key}: is another one once more; give it an interface, group or port of its own"
        names.add(one.name)
        ends.add(end)
    return ""


def _impossible_path(network: RedundantNetwork, transport: str) -> str:
    """What cannot be meant by one network, beginning with its key."""
    if transport == "unicast" and not network.peers:
        return 'peers: is missing; transport "unicast" needs every node\'s address: peers = ["10.0.0.2:5405"]'
    if transport != "unicast" and network.peers:
        return 'peers: is for transport = "unicast" alone; remove one of the two'
    if transport == "multicast":
        try:
            group = ipaddress.ip_address(network.group)
        except ValueError:
            return f"group: {network.group!r} is no IP address; 239.192.77.1 would be one"
        if not group.is_multicast:
            return f"group: {network.group} is no multicast address; 239.192.77.1 would be one"
        if network.unicast_port == network.port:
            return "unicast_port: must differ from network.port; 0 takes any free one"
    return ""


def _impossible_values(config: AgentConfig) -> str:
    paths = {
        "node.state_dir": config.node.state_dir, "node.socket": config.node.socket,
        "security.key_file": config.security.key_file,
    }  # fmt: skip
    for key, path in paths.items():
        if "\0" in path:
            return f"{key}: {path!r:.80} holds a NUL"
    if config.timing.suspicion_ms < 4 * config.timing.heartbeat_ms:
        return (
            f"timing.suspicion_ms: {config.timing.suspicion_ms} is less than four heartbeats of "
            f"{config.timing.heartbeat_ms} ms: at least {4 * config.timing.heartbeat_ms}, "
            "or a shorter timing.heartbeat_ms"
        )
    if config.timing.sync_timeout_ms < 4 * config.timing.heartbeat_ms:
        return (
            f"timing.sync_timeout_ms: {config.timing.sync_timeout_ms} is less than four heartbeats, by which progress "
            f"is told: at least {4 * config.timing.heartbeat_ms}"
        )
    if 0 < config.timing.new_history_after_s * 1000 < config.timing.history_wait_ms:
        return (
            f"timing.new_history_after_s: {config.timing.new_history_after_s} s is less than timing.history_wait_ms "
            f"({config.timing.history_wait_ms}), which is waited for in any case; 0: never without an operator"
        )
    if config.limits.event_bytes > config.limits.backlog_bytes:
        return (
            f"limits.event_bytes: one event of {config.limits.event_bytes} bytes must fit limits.backlog_bytes "
            f"({config.limits.backlog_bytes})"
        )
    if config.limits.window_bytes > config.limits.backlog_bytes:
        return f"limits.window_bytes: at most limits.backlog_bytes ({config.limits.backlog_bytes})"
    return ""


def _impossible_access(config: AgentConfig) -> str:
    for right in ("administrators", "create"):
        for principal in getattr(config.access, right):
            fault = principal_fault(principal)
            if fault:
                return f"access.{right}: {fault}"
    return ""


def _impossible_topics(config: AgentConfig) -> str:
    if len(config.topics) > config.limits.topics:
        return f"topics: {len(config.topics)} topics; limits.topics allows {config.limits.topics}"
    scopes: dict[str, str] = {}
    for topic in config.topics:
        fault = administration_fault(topic.name)[1]
        if fault:
            return f"topics.name: {fault}"
        fault = settings_fault(topic.settings())
        if fault:
            return f"topics: {topic.name!r}: {fault}"
        if topic.name in scopes:
            return f"topics.name: {topic.name!r} is there twice; name each topic once"
        scopes[topic.name] = topic.scope
    return ""


def _impossible_hooks(config: AgentConfig) -> str:
    command, topic = config.hooks.command, config.hooks.topic
    if command and not command[0].startswith("/"):
        return f'hooks.command: {command[0]!r} is no absolute path; no shell looks for it: ["/usr/local/sbin/fence"]'
    if any("\0" in argument for argument in command):
        return "hooks.command: an argument holds a NUL"
    fault = administration_fault(topic)[1] if topic else ""
    if fault:
        return f"hooks.topic: {fault}"
    if any(one.name == topic and one.scope != "local" for one in config.topics):
        return f'hooks.topic: {topic!r} is in topics with scope "global"; what it tells is of this node alone: "local"'
    return ""


def _list(table: dict[int, int]) -> str:
    return ", ".join(str(node_id) for node_id in table)
