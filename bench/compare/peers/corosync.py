"""Corosync's closed process groups (CPG), on its multicast transport, unsealed, or on knet, sealed; a client in C."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

from bench.compare.install import compile_c, run
from bench.compare.peers.peer import Peer
from tests.netns.hosts import Hosts

# Debian's file, but for the network, what is logged, and the nodes.
CONFIGURATION: Final = """\
totem {{
    version: 2
    cluster_name: bench
{transport}
}}
logging {{
    to_stderr: yes
    to_syslog: no
    to_logfile: no
}}
quorum {{
    provider: corosync_votequorum
}}
system {{
    state_dir: {state}
}}
nodelist {{
{nodes}
}}
"""
MULTICAST: Final = """\
    transport: udp
    crypto_cipher: none
    crypto_hash: none
    interface {{
        ringnumber: 0
        bindnetaddr: {network}
        mcastaddr: 239.192.77.2
        mcastport: 5405
    }}"""
SEALED: Final = """\
    transport: knet
    crypto_cipher: aes256
    crypto_hash: sha256
    keyfile: {key}"""
KEY_BYTES: Final = 256  # as corosync-keygen makes it
NODE: Final = (
    "    node {{ \n        nodeid: {i}\n        name: host{i}\n        ring0_addr: {address}\n    }}"
)


class Corosync(Peer):
    name = "corosync"
    title = "Corosync CPG"
    guarantee = (
        "agreed: one total order for all members, reliable; delivered before a majority is known to hold it"
    )
    total_order = True
    api = "cpg_mcast_joined and cpg_dispatch (C)"
    debian = ("corosync", "libcpg-dev")
    needs = (("usr/sbin/corosync", "corosync"), ("usr/include/corosync/cpg.h", "libcpg-dev"))
    tools = (("gcc", "gcc libc6-dev"), ("unshare", "util-linux"))
    member = True

    def __init__(self) -> None:
        super().__init__()
        self._client = ""

    def build(self) -> None:
        self._client = str(compile_c("corosync", "cpg", tree=self.tree))

    def version(self) -> str:
        return run([self._program(), "-v"], LD_LIBRARY_PATH=self.tree.libraries).splitlines()[0]

    def start(self, hosts: Hosts, directory: Path) -> None:
        self._hosts = hosts
        nodes = "\n".join(NODE.format(i=i, address=hosts.address(i)) for i in hosts.numbers)
        for i in hosts.numbers:
            state = directory / f"{i}.state"
            state.mkdir()
            file = directory / f"{i}.conf"
            transport = self._transport(hosts, i, directory)
            file.write_text(CONFIGURATION.format(transport=transport, state=state, nodes=nodes), "utf-8")
            # Its lock file has a fixed name in /run: each daemon has a /run of its own.
            script = f'mount -t tmpfs run /run && {self._mounts()}exec "$0" -f -c "$1"'
            self.start_daemon(
                i, ["unshare", "--mount", "sh", "-c", script, self._program(), str(file)], directory
            )
        self.await_words(f"Members[{len(hosts.numbers)}]:", directory)

    def _transport(self, hosts: Hosts, i: int, directory: Path) -> str:
        return MULTICAST.format(network=hosts.address(i))

    def _mounts(self) -> str:
        """What the daemon's file system needs, as commands for a shell."""
        return ""

    def command(self, i: int, role: str) -> list[str]:
        return [self._client, role]

    def _program(self) -> str:
        return str(self.tree.find("usr/sbin/corosync") or "corosync")


class CorosyncSealed(Corosync):
    """As it is shipped: unicast by knet, each packet encrypted and authenticated."""

    title = "Corosync CPG, knet, aes256 and sha256"

    def _transport(self, hosts: Hosts, i: int, directory: Path) -> str:
        key = directory / "authkey"
        if not key.exists():
            key.write_bytes(os.urandom(KEY_BYTES))
            key.chmod(0o400)
        return SEALED.format(key=key)

    def _mounts(self) -> str:
        """knet looks for what encrypts below /usr alone: what is unpacked elsewhere is laid over that."""
        commands = []
        for folder in sorted(self.tree.root.glob("usr/lib/*/kronosnet")):
            there = f"/{folder.parent.relative_to(self.tree.root)}"
            layers = f"lowerdir={shlex.quote(str(folder.parent))}:{there}"
            commands.append(f"mount -t overlay overlay -o {layers} {there} && ")
        return "".join(commands)
