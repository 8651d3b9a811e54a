"""The agent's key file: who may own and read it, and which changes of it are taken."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ocfcluster.agent import keys as agent_keys
from ocfcluster.agent.keys import KeyRing, NoKeys, read_key_file
from ocfcluster.errors import ConfigurationError
from ocfcluster.limits import KEY_REPORT_OLD_NS
from ocfcluster.net.memory import MemoryHub
from ocfcluster.net.sealed import PeerKeys
from tests.keyed import new_key, write_keys

OLD = new_key()
NEW = new_key(OLD)
MEMBERS = [(2, 22), (3, 33)]
TABLE = {1, 2, 3, 4}
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


def test_a_key_file_of_its_owner_alone(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "key", OLD, NEW)
    assert read_key_file(file) == [OLD, NEW]
    file.chmod(0o400)
    assert read_key_file(str(file)) == [OLD, NEW]


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o660, 0o610, 0o601, 0o644, 0o4600])
def test_modes_that_let_others_in(tmp_path: Path, mode: int) -> None:
    file = write_keys(tmp_path / "key", OLD)
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"mode {mode:04o}.*chmod 0600"):
        read_key_file(file)


@root
def test_the_group_may_read_it_where_it_is_roots_and_the_group_the_agents(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "key", OLD)
    file.chmod(0o640)
    os.chown(file, 0, os.getegid())
    assert read_key_file(file) == [OLD]
    os.chown(file, 0, 12345)
    with pytest.raises(ConfigurationError, match="mode 0640"):
        read_key_file(file)
    os.chown(file, 65534, os.getegid())
    with pytest.raises(ConfigurationError, match="belongs to uid 65534"):
        read_key_file(file)


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"security\.key_file: .*gone is not there; ocfcluster keygen"
    ):
        read_key_file(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="is no file"):
        read_key_file(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    with pytest.raises(ConfigurationError, match="is no file"):
        read_key_file(fifo)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe" * 40)
    binary.chmod(0o600)
    with pytest.raises(ConfigurationError, match="is no text"):
        read_key_file(binary)


class Ring:
    """A key ring that seals for a transport of no network, and hears what the others say."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys = KeyRing(str(file), read_key_file(file), "c")
        self.traffic = self.keys.seal(MemoryHub().transport(), "c", 1, 11)

    def say(self, member: tuple[int, int], *key_ids: str, ago_ns: int = 0) -> None:
        self.traffic.peer_keys[member] = PeerKeys(key_ids, time.monotonic_ns() - ago_ns)


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    return Ring(write_keys(tmp_path / "key", OLD))


def test_a_key_is_used_when_every_member_has_said_that_it_has_it(ring: Ring) -> None:
    wanted = [NEW.id, OLD.id]
    ring.say(MEMBERS[0], OLD.id, NEW.id)
    assert ring.keys.fault([OLD.id, NEW.id], MEMBERS, TABLE) == "", "to accept one more is always possible"
    assert "node 3 has not said that it has key" in ring.keys.fault(wanted, MEMBERS, TABLE)
    ring.say(MEMBERS[1], OLD.id)
    assert "node 3 has not said" in ring.keys.fault(wanted, MEMBERS, TABLE)
    ring.say(MEMBERS[1], OLD.id, NEW.id)
    assert ring.keys.fault(wanted, MEMBERS, TABLE) == ""
    ring.say(MEMBERS[0], OLD.id, NEW.id, ago_ns=KEY_REPORT_OLD_NS)
    assert "node 2 has not said" in ring.keys.fault(wanted, MEMBERS, TABLE), "that was long ago"


def test_who_is_heard_and_no_member_counts_as_well(ring: Ring) -> None:
    ring.say((4, 44), OLD.id)
    assert "node 4 has not said" in ring.keys.fault([NEW.id, OLD.id], [], TABLE)
    assert ring.keys.fault([NEW.id, OLD.id], [], {1, 2, 3}) == "", "a node of no table is none to wait for"


def test_who_has_a_stolen_key_does_not_keep_it_in_force(tmp_path: Path) -> None:
    ring = Ring(write_keys(tmp_path / "key", NEW, OLD))
    ring.say(MEMBERS[0], OLD.id)  # in a member's name
    ring.say(MEMBERS[1], NEW.id)
    write_keys(ring.file, NEW)
    with pytest.raises(ConfigurationError, match="node 2 has not said"):
        ring.keys.load(MEMBERS, TABLE)
    ring.keys.load(MEMBERS, TABLE, force=True)
    assert ring.keys.keys == ring.keys.sealing.keys == [NEW]


def test_a_key_is_dropped_when_no_member_seals_with_it(tmp_path: Path) -> None:
    ring = Ring(write_keys(tmp_path / "key", NEW, OLD))
    ring.say(MEMBERS[0], NEW.id, OLD.id)
    ring.say(MEMBERS[1], OLD.id, NEW.id)
    assert "node 3 has not said that it seals with another" in ring.keys.fault([NEW.id], MEMBERS, TABLE)
    ring.say(MEMBERS[1], NEW.id)
    assert ring.keys.fault([NEW.id], MEMBERS, TABLE) == ""
    assert ring.keys.fault([], MEMBERS, TABLE) == "no key would be left"


def test_a_file_that_is_refused_changes_nothing(ring: Ring) -> None:
    write_keys(ring.file, NEW, OLD)
    with pytest.raises(ConfigurationError, match="nodes 2, 3 have not said"):
        ring.keys.load(MEMBERS, TABLE)
    ring.file.write_text("nonsense")
    with pytest.raises(ConfigurationError, match="is no key file"):
        ring.keys.load([], TABLE)
    assert ring.keys.keys == ring.keys.sealing.keys == [OLD]
    write_keys(ring.file, OLD, NEW)
    ring.keys.load(MEMBERS, TABLE)
    assert ring.keys.keys == ring.keys.sealing.keys == [OLD, NEW]


def test_status_and_log_name_keys_and_show_none(ring: Ring) -> None:
    ring.say(MEMBERS[0], OLD.id)
    with capture_logs() as logs:
        write_keys(ring.file, OLD, NEW)
        ring.keys.load([], TABLE)
    document = ring.keys.document(1, MEMBERS)
    assert document["members"] == [
        {"node_id": 1, "key_ids": [OLD.id, NEW.id]},
        {"node_id": 2, "key_ids": [OLD.id]},
        {"node_id": 3, "key_ids": []},
    ]
    text = f"{document} {logs}"
    assert NEW.id in text
    assert OLD.encoded()[:10] not in text
    assert NEW.encoded()[:10] not in text


def test_an_agent_without_keys_says_so() -> None:
    transport = MemoryHub().transport()
    assert NoKeys().seal(transport, "c", 1, 1) is transport
    assert NoKeys().document(1, [])["sealed"] is False
    assert "no security.key_file" in NoKeys().fault(["a"], [], TABLE)
    with pytest.raises(ConfigurationError, match="has none"):
        NoKeys().load([], TABLE)


def test_an_agents_file_is_read_whosever_it_is(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "key", OLD)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="0644"):
        read_key_file(file)
    assert read_key_file(file, own=False) == [OLD]


def test_every_reason_for_which_a_datagram_is_dropped_has_its_words() -> None:
    assert set(agent_keys._ADVICE) == set(agent_keys.sealing.OUTCOMES)
