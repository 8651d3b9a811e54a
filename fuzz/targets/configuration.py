"""The agent's configuration file, and what is made of one that is taken."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from fuzz.mutation import damage
from fuzz.target import ROOT, Target, taken
from fuzz.targets.keys import written
from ocfcluster.agent.config import AgentConfig, load
from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import NODES

_LINES: Final = (
    b"[cluster]", b"[node]", b"[network]", b"[[network.networks]]", b"[security]", b"[limits]", b"[timing]", b"[log]",
    b"[hooks]", b"[access]", b"[components]", b"[[topics]]", b"nodes = [1, 2, 3]", b"nodes = { 1 = 1, 2 = 3 }",
    b"id = 1", b'name = "a"', b'transport = "unicast"', b'peers = ["10.0.0.2:5405"]', b'interface = "eth0"',
    b"port = 65535", b'group = "ff15::1"', b"suspicion_ms = 1", b"retention = { events = 5 }", b'publish = ["user:a"]',
    b'command = ["/bin/true"]', b"x = 99999999999999999999", b"x = 1e400", b"x = 1979-05-27T07:32:00Z", b'"" = 1',
    b'x.y.z = "\\u0000"', b"x = [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]", b'administrators = ["group:wheel"]', b"ttl = 256",
)  # fmt: skip


def check(data: bytes) -> None:
    config = taken(ConfigurationError, load, written("configuration", data))
    if config is None:
        return
    assert isinstance(config, AgentConfig)
    assert len(config.cluster.table()) <= NODES
    assert config.transport() in ("multicast", "unicast", "memory")
    assert "\0" not in config.node.state_dir + config.node.socket + config.security.key_file
    config.times()
    config.replicated_limits()
    config.network.all()
    for topic in config.topics:
        topic.settings()


def mutate(data: bytes, random: Random) -> bytes:
    """By lines: left out, exchanged, put in from what configurations have; a value damaged."""
    if random.random() < 0.002:
        return b"x = " + b"[" * 3000
    if random.random() < 0.002:
        return b"x = " + b"9" * 5000
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, random.choice(lines))
        case 2:
            key, sign, value = lines[at].partition(b"=")
            lines[at] = key + sign + damage(value, random)
        case 3:
            lines[at] = random.choice(_LINES)
        case _:
            lines.insert(at, random.choice(_LINES))
    return b"\n".join(lines)


def seeds() -> Iterator[bytes]:
    yield b""
    yield b'[cluster]\nname = "c"\nnodes = [1, 2, 3]\n[node]\nid = 2\nstate_dir = "/s"\n[network]\ninterface = "eth0"\n'
    yield b'[cluster]\nnodes = { 1 = 1, 2 = 2 }\n[node]\nid = 1\n[network]\ntransport = "unicast"\npeers = ["h:1"]\n'
    yield (
        b'[[topics]]\nname = "t"\nretention = { events = 10, bytes = 4096, seconds = 60 }\n'
        b'publish = ["user:a", "*"]\nsubscribe = ["gid:5"]\nadminister = []\n[[topics]]\nname = "l"\nscope = "local"\n'
    )
    yield b'[timing]\nheartbeat_ms = 100\nsuspicion_ms = 1000\n[limits]\nevent_bytes = 2048\n[log]\nlevel = "debug"\n'
    yield (
        b'[cluster]\nnodes = [1, 2]\n[node]\nid = 1\n[[network.networks]]\ninterface = "a"\n'
        b'[[network.networks]]\ninterface = "b"\ngroup = "239.1.1.1"\nport = 7\n'
    )
    yield b'[hooks]\ncommand = ["/bin/true"]\ntopic = "h"\n[access]\nadministrators = ["uid:0"]\ncreate = ["*"]\n'
    yield b'[security]\nkey_file = "/k"\n[components]\nmembership = "external"\n'
    example = ROOT.parent / "deploy" / "ocfcluster.toml"
    if example.exists():
        lines = example.read_bytes().splitlines()
        yield b"\n".join(one.lstrip(b"# ") for one in lines if b"=" in one or one.startswith((b"[", b"# [")))


TARGET: Final = Target(check, seeds, ("agent/config.py",), mutate, most_bytes=1024)
