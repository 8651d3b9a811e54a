"""Configuration files: what is wrong is refused with the file, the key and what would be right."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import msgspec
import pytest

from ocfcluster.agent import config as agent_config
from ocfcluster.agent import incarnations as module
from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.agent.incarnations import node_factory
from ocfcluster.agent.state_dir import StateDirectory
from ocfcluster.errors import ConfigurationError
from ocfcluster.net.memory import MemoryHub
from ocfcluster.protocol.settings import Settings

ROOT = Path(__file__).parents[2]

GOOD = """
[cluster]
name = "blue"
nodes = { 1 = 1, 2 = 1, 3 = 2 }
delivery = "agreed"
[node]
id = 2
state_dir = "/var/lib/ocfcluster"
[network]
interface = "10.0.0.0/24"
loop = true
[security]
insecure = true
[timing]
heartbeat_ms = 50
[[topics]]
name = "orders"
[[topics]]
name = "here"
scope = "local"
"""


def write(directory: Path, text: str) -> Path:
    file = directory / "agent.toml"
    file.write_text(text)
    return file


def test_a_whole_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    assert config.cluster.table() == {1: 1, 2: 1, 3: 2}
    assert config.transport() == "multicast"
    assert config.timing.heartbeat_ms == 50
    assert [(topic.name, topic.scope) for topic in config.topics] == [("orders", "global"), ("here", "local")]
    assert config.network.loop is True


RECOVERY = """
[cluster]
nodes = [1, 2, 3]
bootstrap = "majority"
last_man_standing = true
rejoin = false
[node]
id = 1
state_dir = "{directory}"
[timing]
sync_timeout_ms = 401
leave_timeout_ms = 402
quorum_lost_after_ms = 403
history_wait_ms = 404
new_history_after_s = 405
"""


def test_the_settings_of_recovery_reach_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(write(tmp_path, RECOVERY.format(directory=tmp_path)))
    assert not config.cluster.rejoin
    made: list[Settings] = []
    monkeypatch.setattr(module, "Node", lambda settings, now, wall_ns: made.append(settings))
    state_dir = StateDirectory(tmp_path / "state", config.cluster.name, 1)
    state_dir.close()
    node_factory(config, MemoryHub().transport(), state_dir, 7)(0, 0)
    (settings,) = made
    assert (settings.bootstrap, settings.last_man_standing) == ("majority", True)
    assert (
        settings.sync_timeout_ns, settings.leave_timeout_ns, settings.quorum_lost_after_ns, settings.history_wait_ns,
    ) == (401_000_000, 402_000_000, 403_000_000, 404_000_000)  # fmt: skip
    assert settings.new_history_after_ns == 405_000_000_000


def test_the_defaults_of_recovery_are_those_of_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Settings] = []
    monkeypatch.setattr(module, "Node", lambda settings, now, wall_ns: made.append(settings))
    state_dir = StateDirectory(tmp_path / "state", "ocfcluster", 1)
    state_dir.close()
    node_factory(AgentConfig(), MemoryHub().transport(), state_dir, 7)(0, 0)
    own = {"cluster_name", "node_id", "incarnation", "store_id", "seed", "mtu", "receive_buffer_bytes"}
    for field in dataclasses.fields(Settings):
        if field.name not in own:
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            assert getattr(made[0], field.name) == default, field.name


def test_nothing_at_all_is_one_development_node(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""))
    assert config == AgentConfig()
    assert config.cluster.table() == {}
    assert config.transport() == "memory"
    assert config.node.id == 1


def test_a_list_of_nodes_gives_each_one_vote(tmp_path: Path) -> None:
    assert load(write(tmp_path, "[cluster]\nnodes = [1, 2]\n[node]\nid = 1")).cluster.table() == {1: 1, 2: 1}


TWO = "[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n"
NETWORK = "[[network.networks]]\ninterface = 'eth1'\n"


def test_networks_take_from_the_section_what_they_do_not_say(tmp_path: Path) -> None:
    several = (
        "group = '239.1.1.1'\nmtu = 1400\n[[network.networks]]\ninterface = 'eth1'\nport = 7\n"
        "[[network.networks]]\ninterface = '10.0.0.0/24'\nname = 'blue'\ngroup = '239.2.2.2'\nmtu = 1300\n"
    )
    one, two = load(write(tmp_path, f"{TWO}[network]\n{several}")).network.all()
    assert (one.name, one.interface, one.group, one.port, one.mtu) == ("eth1", "eth1", "239.1.1.1", 7, 1400)
    assert (two.name, two.interface, two.group, two.port, two.mtu) == (
        "blue", "10.0.0.0/24", "239.2.2.2", 5405, 1300,
    )  # fmt: skip
    (only,) = load(write(tmp_path, f"{TWO}[network]\ninterface = 'eth7'\nunicast_port = 9")).network.all()
    assert (only.name, only.interface, only.unicast_port) == ("eth7", "eth7", 9)
    assert AgentConfig().network.all()[0].interface == "lo"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cluster]\nnmae = 'x'", ["cluster.nmae", "unknown key", "name"]),
        ("colour = 1", ["colour", "unknown key", "cluster"]),
        ("[[topics]]\nname = 'a'\nscop = 'local'", ["topics[0].scop", "unknown key", "scope"]),
        ("[node]\nid = 'one'", ["node.id", "a whole number", "text"]),
        ("[node]\nid = 0", ["node.id", ">= 1"]),
        ("[node]\nsocket = 7", ["node.socket", "text in quotes", "a whole number"]),
        ("[node]\nsocket_mode = '660'", ["node.socket_mode", "0660"]),
        ("node = 3", ["node", "a table"]),
        ('[security]\nkey_file = "/k\\u0000"', ["security.key_file", "NUL"]),
        ("x = " + "[" * 3000, ["nested too deeply"]),
        ("x = " + "9" * 5000, ["too many digits"]),
        ("[cluster]\ndelivery = 'fast'", ["cluster.delivery", '"safe" or "agreed"']),
        ("[network]\ntransport = 'carrier pigeon'", ["network.transport", '"unicast"']),
        ("[network]\nloop = 'maybe'", ["network.loop"]),
        ("[network]\nport = 70000", ["network.port", "65535"]),
        ("[network]\nport = 5.5", ["network.port", "a whole number", "not a floating-point number"]),
        ("[cluster]\nname = ''", ["cluster.name", "1 to 64 bytes", "not 0"]),
        (f"[cluster]\nname = '{65 * 'x'}'", ["cluster.name", "1 to 64 bytes", "not 65"]),
        ("[limits]\nevent_bytes = 100_000_000", ["limits.event_bytes", "67108864"]),
        ("[[topics]]\nscope = 'local'", ["topics[0].name: is missing"]),
        ("[[topics]]\nname = 'oc.x'", ["topics.name", "reserved"]),
        ("[[topics]]\nname = 'a'\n[[topics]]\nname = 'a'", ["topics.name", "twice"]),
        ("[[topics]]\nname = ''", ["topics.name", "255"]),
        ("[cluster]\nnodes = [1, 2]", ["node.id", "missing", "1, 2"]),
        ("[cluster]\nnodes = [1, 2]\n[node]\nid = 3", ["node.id", "3", "1, 2"]),
        ("[cluster]\nnodes = [1, 1]\n[node]\nid = 1", ["cluster.nodes", "twice"]),
        ("[cluster]\nnodes = { 1 = 0 }", ["cluster.nodes", "vote"]),
        ("[cluster]\nnodes = { one = 1 }", ["cluster.nodes: 'one' = 1", "whole number"]),
        ("[cluster]\nnodes = { 1 = 1, 2 = 300 }", ["cluster.nodes: '2' = 300", "votes", "255"]),
        ("[cluster]\nnodes = { 1 = 1, 2 = 'x' }", ["cluster.nodes: '2' = 'x'", "votes"]),
        ("[cluster]\nnodes = { 1 = 1, 0 = 1 }", ["cluster.nodes: '0' = 1", "from 1"]),
        ("[cluster]\nnodes = [1, 0]", ["cluster.nodes[1]", ">= 1"]),
        ("[cluster]\nnodes = []", ["cluster.nodes", "names no node"]),
        ("[cluster]\nnodes = {}", ["cluster.nodes", "names no node"]),
        ("[network]\ntransport = 'multicast'", ["cluster.nodes", "missing"]),
        ("[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n[network]\ntransport = 'memory'", ["network.transport"]),
        (
            "[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n[network]\ntransport = 'unicast'",
            ["network.peers", "missing"],
        ),
        ("[network]\npeers = ['10.0.0.1']", ["network.peers", "unicast"]),
        (
            "[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n[network]\ngroup = '10.0.0.1'",
            ["network.group", "239."],
        ),
        (f"{TWO}[[network.networks]]\nname = 'a'", ["network.networks[0].interface: is missing"]),
        (f"{TWO}[[network.networks]]\ninterfaces = 'a'", ["network.networks[0].interfaces", "unknown key"]),
        (
            f"{TWO}[network]\ninterface = 'eth1'\n[[network.networks]]\ninterface = 'eth2'",
            ["network.interface", "network.networks"],
        ),
        (
            f"{TWO}[network]\nunicast_port = 1\n[[network.networks]]\ninterface = 'eth2'",
            ["network.unicast_port", "network.networks"],
        ),
        (f"{TWO}{2 * NETWORK}", ["network.networks[1].name", "'eth1'", "twice"]),
        (f"{TWO}{NETWORK}{NETWORK}name = 'b'", ["network.networks[1]", "once more"]),
        (f"{TWO}{NETWORK}group = '10.0.0.1'", ["network.networks[0].group", "239."]),
        (f"{TWO}{NETWORK}unicast_port = 5405", ["network.networks[0].unicast_port"]),
        (f"{TWO}{NETWORK}peers = ['10.0.0.1']", ["network.networks[0].peers", "unicast"]),
        (f"{TWO}[network]\ntransport = 'unicast'\n{NETWORK}", ["network.networks[0].peers", "missing"]),
        (
            TWO + "".join(f"[[network.networks]]\ninterface = 'eth{number}'\n" for number in range(5)),
            ["network.networks", "5", "at most 4"],
        ),
        ("[[network.networks]]\ninterface = 'eth1'", ["network.networks", "memory"]),
        ("[timing]\nsuspicion_ms = 200", ["timing.suspicion_ms", "400"]),
        ("[timing]\nsync_timeout_ms = 399", ["timing.sync_timeout_ms", "400"]),
        ("[timing]\nleave_timeout_ms = 0", ["timing.leave_timeout_ms", ">= 1"]),
        ("[timing]\nnew_history_after_s = 29", ["timing.new_history_after_s", "30000"]),
        ("[timing]\nnew_history_after_s = -1", ["timing.new_history_after_s", ">= 0"]),
        ("[cluster]\nbootstrap = 'some'", ["cluster.bootstrap", '"all" or "majority"']),
        ("[cluster]\nbootstrap = 'majority'", ["cluster.bootstrap", "cluster.nodes"]),
        ("[cluster]\nlast_man_standing = true", ["cluster.last_man_standing", "cluster.nodes"]),
        (
            "[cluster]\nnodes = [1, 2]\nlast_man_standing = true\n[node]\nid = 1",
            ["cluster.last_man_standing", "node.state_dir"],
        ),
        ("[cluster]\nrejoin = 'no'", ["cluster.rejoin", "true or false"]),
        ("[limits]\nbacklog_bytes = 1_048_576\nevent_bytes = 2_000_000", ["limits.event_bytes", "backlog"]),
        ("[limits]\nbacklog_bytes = 1_048_576", ["limits.window_bytes", "backlog"]),
        ("name = ", ["not TOML", "Invalid value"]),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml")
    file = tmp_path / "agent.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load(file)


def test_the_example_loads() -> None:
    config = load(ROOT / "deploy" / "ocfcluster.toml")
    assert len(config.cluster.table()) == 3


def test_every_key_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", text, re.MULTILINE))
    keys = set()
    for name, section in agent_config._SECTIONS.items():
        if name:
            prefix = f"{name}[]" if name in ("topics", "network.networks") else name
            keys |= {f"{prefix}.{field}" for field in section.__struct_fields__}
    assert documented == keys
    for section, struct in agent_config._SECTIONS.items():
        if section in ("", "topics", "network.networks"):
            continue
        for field in msgspec.structs.fields(struct):
            if isinstance(field.default, bool | int):
                row = next(
                    line for line in text.splitlines() if line.startswith(f"| `{section}.{field.name}` |")
                )
                shown = row.split("|")[3].strip().strip("`").replace(" ", "")
                assert shown == (
                    str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
                )
