"""Three hosts that seal: a key is changed under load, on one network and on two, and forgers are on the wire."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.keyed import Keyed, KeyedCluster, command, new_key, rotate_under_load, until, write_keys
from tests.netns.hosts import Hosts
from tests.netns.networks import RedundantCluster, TwoNetworks

pytestmark = pytest.mark.netns

TOPICS = ["red", "blue"]
NODES = (1, 2, 3)


class KeyedRedundant(Keyed, RedundantCluster):
    pass


@pytest.mark.timeout(180)
def test_a_rotation_under_load_loses_nothing_and_nobody(tmp_path: Path) -> None:
    with Hosts(3) as hosts, KeyedCluster(hosts, topics=TOPICS) as cluster:
        rotate_under_load(cluster, TOPICS, tmp_path)


@pytest.mark.timeout(180)
def test_a_rotation_on_two_networks(tmp_path: Path) -> None:
    with TwoNetworks(3) as hosts, KeyedRedundant(hosts, topics=TOPICS) as cluster:
        rotate_under_load(cluster, TOPICS, tmp_path)
        for i in NODES:
            assert cluster.status(i)["network_counters"]["duplicates_dropped"] > 100


FORGER = """
import random, select, socket, struct, sys, time
group, port, interface, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
chance = random.Random(1)
hearing = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
hearing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
hearing.bind((group, port))
hearing.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(group) + socket.inet_aton(interface))
sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(interface))
end, heard, sent = time.monotonic() + seconds, [], 0
while time.monotonic() < end:
    while select.select([hearing], [], [], 0)[0] and (one := hearing.recv(65536)):
        heard = [one, *heard[:500]] if len(one) > 48 else heard  # not what is cut off here
    time.sleep(0.0005)
    if not heard:
        continue
    one = chance.choice(heard)
    how = chance.randrange(6)
    if how == 1:  # one bit
        at = chance.randrange(len(one))
        one = one[:at] + bytes([one[at] ^ 1 << chance.randrange(8)]) + one[at + 1 :]
    elif how == 2:
        one = one[: chance.randrange(1, len(one))]
    elif how == 3:  # as if it came next of its sender
        counter = struct.unpack_from("<Q", one, 24)[0] + chance.randrange(1, 100000)
        one = one[:24] + struct.pack("<Q", counter) + one[32:]
    elif how == 4:  # as if it were of another node
        one = one[:8] + struct.pack("<I", chance.randrange(1, 4)) + one[12:]
    elif how == 5:  # in the clear
        one = one[:3] + b"\\0" + one[4:]
    sending.sendto(one, (group, port))
    sent += 1
print(sent)
"""


@pytest.mark.timeout(180)
def test_who_records_replays_and_forges_gets_nothing_in(tmp_path: Path) -> None:
    """A fourth host without the key sends back what it hears, as it was and changed; the load does not notice."""
    with Hosts(4) as hosts, Three(hosts, topics=TOPICS) as cluster:
        argv = [sys.executable, "-c", FORGER, "239.192.77.1", "5405", hosts.address(4), "12"]
        forger = hosts.popen(4, argv, stdout=subprocess.PIPE, text=True)
        before = {i: cluster.status(i) for i in NODES}
        with cluster.connect(1) as publisher, cluster.connect(3) as subscriber:
            subscription = subscriber.subscribe("red")
            sent, began = 0, time.monotonic()
            while time.monotonic() - began < 10.0:
                publisher.publish("red", b"%d" % sent)
                sent += 1
                time.sleep(0.001)
            publisher.flush(10.0)
            got = [subscription.get(timeout=10.0) for _ in range(sent)]
            assert [event.data for event in got if event is not None] == [
                b"%d" % number for number in range(sent)
            ]
        output, _ = forger.communicate(timeout=60)
        assert forger.returncode == 0
        forged = int(output)
        assert forged > 1000
        for i in NODES:
            after = cluster.status(i)
            assert after["epoch"] == before[i]["epoch"]
            assert after["evictions"] == 0
            assert after["datagrams"]["malformed"] == after["datagrams"]["foreign"] == 0, (
                "nothing forged came so far"
            )
            counted = cluster.dropped(i)
            assert counted["seal_forged"] > 100
            assert counted["seal_missing"] > 100
            print(f"node {i}: {forged} sent, {counted}, replayed {after['datagrams']['replayed']}")


class Three(KeyedCluster):
    """Agents on three of four hosts."""

    def __init__(self, hosts: Hosts, **options: Any) -> None:
        super().__init__(hosts, **options)
        self.nodes = range(1, 4)  # type: ignore[misc]
        self._config["cluster"]["nodes"] = [1, 2, 3]


@pytest.mark.timeout(120)
def test_a_node_without_the_key_is_let_in_once_it_has_it(tmp_path: Path) -> None:
    with Hosts(3) as hosts, KeyedCluster(hosts, topics=TOPICS) as cluster:
        cluster.stop_agent(2)
        write_keys(cluster.key_file(2), new_key(cluster.key))
        cluster.start_agent(2)
        until(lambda: cluster.dropped(1).get("seal_unknown_key", 0) > 0)
        assert cluster.status(2)["state"] == "forming"
        right = write_keys(tmp_path / "right", cluster.key)
        cluster.change(2, "add", str(right))
        # Refused until the others, whom it can hear now, have said which keys they have: once a second they do.
        use = ("--socket", cluster.socket(2), "key", "use", cluster.key.id)
        until(lambda: command(*use).returncode == 0)
        cluster.wait_active()
