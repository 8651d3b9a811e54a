"""Configuration files: what is wrong is refused with the file, the key and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from ocfcluster.agent import config as agent_config
from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.errors import ConfigurationError

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


def test_nothing_at_all_is_one_development_node(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""))
    assert config == AgentConfig()
    assert config.cluster.table() == {}
    assert config.transport() == "memory"
    assert config.node.id == 1


def test_a_list_of_nodes_gives_each_one_vote(tmp_path: Path) -> None:
    assert load(write(tmp_path, "[cluster]\nnodes = [1, 2]\n[node]\nid = 1")).cluster.table() == {1: 1, 2: 1}


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
        ("[cluster]\ndelivery = 'fast'", ["cluster.delivery", '"safe" or "agreed"']),
        ("[network]\ntransport = 'carrier pigeon'", ["network.transport", '"unicast"']),
        ("[network]\nloop = 'maybe'", ["network.loop"]),
        ("[network]\nport = 70000", ["network.port", "65535"]),
        ("[limits]\nevent_bytes = 100_000_000", ["limits.event_bytes", "67108864"]),
        ("[[topics]]\nscope = 'local'", ["topics", "name"]),
        ("[[topics]]\nname = 'oc.x'", ["topics.name", "reserved"]),
        ("[[topics]]\nname = 'a'\n[[topics]]\nname = 'a'", ["topics.name", "twice"]),
        ("[[topics]]\nname = ''", ["topics.name", "255"]),
        ("[cluster]\nnodes = [1, 2]", ["node.id", "missing", "1, 2"]),
        ("[cluster]\nnodes = [1, 2]\n[node]\nid = 3", ["node.id", "3", "1, 2"]),
        ("[cluster]\nnodes = [1, 1]\n[node]\nid = 1", ["cluster.nodes", "twice"]),
        ("[cluster]\nnodes = { 1 = 0 }", ["cluster.nodes", "vote"]),
        ("[cluster]\nnodes = { one = 1 }", ["cluster.nodes", "whole number"]),
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
        ("[timing]\nsuspicion_ms = 200", ["timing.suspicion_ms", "400"]),
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
            prefix = "topics[]" if name == "topics" else name
            keys |= {f"{prefix}.{field}" for field in section.__struct_fields__}
    assert documented == keys
    for section, struct in agent_config._SECTIONS.items():
        if section in ("", "topics"):
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
