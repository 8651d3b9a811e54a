"""Changes of interfaces by netlink: what counts as one, and that others' messages do not."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ocfcluster.net.changes import InterfaceChanges, _count
from ocfcluster.net.interfaces import list_devices, list_interfaces

ROOT = Path(__file__).resolve().parents[2]
INSIDE = """
import subprocess, time
from ocfcluster.net.changes import InterfaceChanges
from ocfcluster.net.interfaces import list_devices
changes = InterfaceChanges()
COMMANDS = ("link set lo up", "link add v0 type veth peer name v1", "address add 192.0.2.1/24 dev v0", "link delete v0")
for words in COMMANDS:
    subprocess.run(["ip", *words.split()], check=True)
    time.sleep(0.05)
    print(changes.read() > 0, changes.read(), [(one.name, one.is_up, one.has_carrier) for one in list_devices()])
changes.close()
"""


def message(kind: int, length: int = 32) -> bytes:
    return struct.pack("=IHHII", length, kind, 0, 0, 0) + bytes(max(0, (length + 3 & ~3) - 16))


def test_links_and_addresses_count() -> None:
    assert _count(message(16) + message(17, 33) + message(20) + message(21)) == 4
    assert _count(message(24) + message(3)) == 0  # a route, the end of a dump
    assert _count(b"") == _count(message(16)[:10]) == 0
    assert (
        _count(message(16, 7) + message(16)) == 0
    )  # shorter than its header: nothing behind it can be found


def test_what_does_not_come_from_the_kernel_is_passed_over() -> None:
    changes = InterfaceChanges()
    try:
        changes.read()
        port = changes._socket.getsockname()[0]
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as other:
            other.bind((0, 0))
            try:
                other.sendto(message(16), (port, 0))
            except PermissionError:
                pytest.skip("this user may not send to others' netlink sockets")
        assert select.select([changes.fileno()], [], [], 1)[0]
        assert changes.read() == 0
    finally:
        changes.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a network namespace")
def test_the_kernel_says_when_something_changes() -> None:
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", INSIDE], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("no network namespace can be made here")
    assert done.stdout.splitlines() == [
        "True 0 [('lo', True, True)]",
        "True 0 [('lo', True, True), ('v1', False, False), ('v0', False, False)]",
        "True 0 [('lo', True, True), ('v1', False, False), ('v0', False, False)]",
        "True 0 [('lo', True, True)]",
    ], done.stderr


def test_devices_and_interfaces_agree() -> None:
    devices = {one.name: one for one in list_devices()}
    for one in list_interfaces():
        device = devices[one.name]
        assert (device.index, device.mtu, device.is_up, device.is_loopback) == (
            one.index, one.mtu, one.is_up, one.is_loopback,
        )  # fmt: skip
        assert (one.address, one.prefix_length) in device.addresses
    assert devices["lo"].is_loopback
    assert devices["lo"].has_carrier
