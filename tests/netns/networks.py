"""Hosts with two networks each: the one of ``Hosts``, and a second one beside it that fails by itself.

The second network's devices are ``eth1`` with 10.78.0.i/24, on a bridge of its own. ``impair`` makes either of them
lossy or dead for one host, by packet filters at its receiving end, or by pulling its cable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from tests.cluster import BaseCluster, Topics
from tests.netns.cluster import Cluster
from tests.netns.hosts import DEVICE, GROUP_ROUTE, Hosts, command

SECOND: Final = "eth1"
NETWORKS: Final = {"first": DEVICE, "second": SECOND}
Name = Literal["first", "second"]
PORT: Final = 5405


class TwoNetworks(Hosts):
    """``n`` hosts on two bridges."""

    def _make_bridge(self) -> None:
        super()._make_bridge()
        lines = ["link add bridge2 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
        for i in self.numbers:
            peer = f"peer name {SECOND} mtu {self.mtu} netns {self.namespace(i)}"
            lines.append(f"link add second{i} mtu {self.mtu} type veth {peer}")
            lines.append(f"link set second{i} master bridge2 up")
        lines.append("link set bridge2 up")
        command("ip", "-n", self._bridge, "-batch", "-", text="\n".join(lines))

    def _configure(self, i: int) -> None:
        super()._configure(i)
        command("ip", "-n", self.namespace(i), "-batch", "-", text="\n".join(self._second_up(i)))

    def _second_up(self, i: int) -> list[str]:
        return [
            f"address replace {self.second_address(i)}/24 dev {SECOND}",
            f"link set {SECOND} up",
            # The other network has the route already: this one is only taken by who binds to the device's address.
            f"route replace {GROUP_ROUTE} dev {SECOND} metric 10",
        ]

    def second_address(self, i: int) -> str:
        return f"10.78.0.{i}"

    def lose(self, network: Name, percent: float, *hosts: int) -> None:
        """Lose this share of what comes to ``hosts`` (all) on a network; 0: nothing any more."""
        device = NETWORKS[network]
        for i in hosts or self.numbers:
            space = self.namespace(i)
            # A veth pair carries a segmented send as one buffer, and a filter would lose it whole: cut it before.
            segments = 1 if percent else 65535
            command("ip", "-n", space, "link", "set", device, "gso_max_segs", str(segments))
            rule = f"numgen random mod 100000 < {round(percent * 1000)} drop" if percent else ""
            rule = "drop" if percent == 100.0 else rule
            table = f"table netdev {network}"
            chain = f"chain arrive {{ type filter hook ingress device {device} priority 0; policy accept; {rule}\n}}"
            text = f"{table}\ndelete {table}\n{table} {{\n{chain}\n}}"
            command("ip", "netns", "exec", space, "nft", "-f", "-", text=text)

    def pull(self, network: Name, *hosts: int) -> None:
        """Pull the cables of ``hosts`` (all)."""
        self._cables(network, "down", hosts)

    def put_back(self, network: Name, *hosts: int) -> None:
        self._cables(network, "up", hosts)

    def take_away(self, network: Name, host: int) -> None:
        """The device is there no more, by its name."""
        space, device = self.namespace(host), NETWORKS[network]
        command("ip", "-n", space, "link", "set", device, "down")
        command("ip", "-n", space, "link", "set", device, "name", "gone")

    def give_back(self, network: Name, host: int) -> None:
        space, device = self.namespace(host), NETWORKS[network]
        command("ip", "-n", space, "link", "set", "gone", "name", device)
        lines = self._up(host) if network == "first" else self._second_up(host)
        command("ip", "-n", space, "-batch", "-", text="\n".join(lines))

    def _cables(self, network: Name, state: str, hosts: Sequence[int]) -> None:
        port = "port" if network == "first" else "second"
        for i in hosts or self.numbers:
            command("ip", "-n", self._bridge, "link", "set", f"{port}{i}", state)


class RedundantCluster(Cluster):
    """One agent on each host, on both of its networks."""

    def __init__(
        self,
        hosts: TwoNetworks,
        transport: Literal["multicast", "unicast"] = "multicast",
        topics: Topics = (),
        **config: Mapping[str, Any],
    ) -> None:
        networks: list[dict[str, Any]] = [
            {"name": name, "interface": device, "port": PORT} for name, device in NETWORKS.items()
        ]
        if transport == "unicast":
            networks[0]["peers"] = [hosts.address(i) for i in hosts.numbers]
            networks[1]["peers"] = [hosts.second_address(i) for i in hosts.numbers]
        network = {"transport": transport, "networks": networks}
        BaseCluster.__init__(self, len(hosts.numbers), network, topics=topics, config=config)
        self.hosts = hosts
