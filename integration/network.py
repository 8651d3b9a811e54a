"""The networks of the containers, and what is wrong with them.

``Bridge``: a user-defined Docker bridge; loss and cuts are packet filters in each receiver's network namespace, which
is entered from the host, so that the image needs no tools and its containers no rights. ``Taps``: the switch in user
space of the tests with namespaces, for delay, reordering and duplication too: its TAP devices are the containers' only
interfaces. Nodes are numbered from 1.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import subprocess
from collections.abc import Iterable
from typing import Any, Final

import docker
from docker.errors import APIError
from docker.models.containers import Container
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool

from tests.netns.hosts import GROUP_ROUTE, PORT_QUEUE_FRAMES, command
from tests.netns.switch import Switch

DEVICE: Final = "eth0"
SUBNETS: Final = ipaddress.ip_network("10.88.0.0/16")
SUBNET_TRIES: Final = 20
FIRST_HOST: Final = 10  # node i has this plus i


def in_namespace(pid: int, *argv: str, text: str | None = None) -> str:
    """Run a program of this machine in the network namespace of a process."""
    return command("nsenter", f"--net=/proc/{pid}/ns/net", *argv, text=text)


class Bridge:
    """A user-defined bridge. What is wrong is kept here, and put into a container (``apply``) whenever it starts."""

    def __init__(self, client: docker.DockerClient, name: str, labels: dict[str, str]) -> None:
        self._client = client
        self.name: Final = name
        self.switch = None
        self._cuts: set[tuple[int, int]] = set()
        self._loss: dict[int, float] = {}  # receiver → percent
        self._containers: dict[int, Container] = {}
        self._network = self._create(labels)

    def _create(self, labels: dict[str, str]) -> Network:
        """In a subnet that nobody uses: Docker says so where it knows."""
        for tries_left in reversed(range(SUBNET_TRIES)):
            subnet = random.SystemRandom().choice(list(SUBNETS.subnets(new_prefix=24)))
            pool = IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet))])
            try:
                network = self._client.networks.create(self.name, driver="bridge", ipam=pool, labels=labels)
            except APIError:
                if not tries_left:
                    raise
                continue
            self._base = subnet.network_address
            return network
        raise AssertionError("the last try has raised")

    def address(self, i: int) -> str:
        return str(self._base + FIRST_HOST + i)

    @property
    def interface(self) -> str:
        """As the agents' configuration names it: not "eth0", which is "eth1" when it has been taken and given back."""
        return f"{self._base}/24"

    def create_options(self, i: int) -> dict[str, Any]:
        """How a container is created that is node ``i``."""
        endpoint = self._client.api.create_endpoint_config(ipv4_address=self.address(i))
        return {"network": self.name, "networking_config": {self.name: endpoint}, "hostname": f"node-{i}"}

    def started(self, i: int, container: Container) -> None:
        """Node ``i``'s container has begun to run, in a new namespace."""
        self._containers[i] = container
        if self._loss.get(i) or any(receiver == i for _, receiver in self._cuts):
            self._apply([i])

    def stopped(self, i: int) -> None:
        self._containers.pop(i, None)

    # --- what is wrong ----------------------------------------------------------------------------------------------

    def set_loss(self, percent: float, receivers: Iterable[int] | None = None) -> None:
        """Lose this share of what arrives at the nodes."""
        chosen = list(self._containers) if receivers is None else list(receivers)
        for i in chosen:
            self._loss[i] = percent
        self._apply(chosen)

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """Nothing from the first of each pair reaches the second any more."""
        links = set(links)
        self._cuts |= links
        self._apply({receiver for _, receiver in links})

    def partition(self, *sides: Iterable[int]) -> None:
        """Nothing passes between the sides."""
        groups = [list(side) for side in sides]
        self.cut((i, j) for one in groups for other in groups if one is not other for i in one for j in other)

    def heal(self) -> None:
        """Undo cuts and losses."""
        touched = {receiver for _, receiver in self._cuts} | {i for i, loss in self._loss.items() if loss}
        self._cuts.clear()
        self._loss.clear()
        self._apply(touched)

    def disconnect(self, i: int) -> None:
        """Take node ``i``'s interface away."""
        self._network.disconnect(self._containers[i], force=True)

    def connect(self, i: int) -> None:
        """Give it back: another device under the same address."""
        self._network.connect(self._containers[i], ipv4_address=self.address(i))
        self.started(i, self._containers[i])

    def _apply(self, receivers: Iterable[int]) -> None:
        """Write the packet filters of these nodes anew, each in one transaction; of who does not run at its start."""
        for i in sorted(receivers):
            container = self._containers.get(i)
            if container is None:
                continue
            pid = pid_of(container)
            device = _device(pid) if pid else ""
            if not device:
                continue
            rules = [
                f"ip saddr {self.address(j)} drop" for j, receiver in sorted(self._cuts) if receiver == i
            ]
            loss = self._loss.get(i, 0.0)
            if loss:
                rules.append(f"numgen random mod 100000 < {round(loss * 1000)} drop")
            table = "\n".join(
                [
                    "table netdev cable",
                    "delete table netdev cable",
                    "table netdev cable {",
                    f"chain arrive {{ type filter hook ingress device {device} priority 0; policy accept;",
                    *rules,
                    "}",
                    "}",
                ]
            )
            # A segmented send crosses a veth pair as one buffer, and a filter would lose it whole: cut it before.
            segments = "1" if any(self._loss.values()) else "65535"
            in_namespace(pid, "ip", "link", "set", device, "gso_max_segs", segments)
            in_namespace(pid, "nft", "-f", "-", text=table)

    def close(self) -> None:
        with contextlib.suppress(APIError):
            self._network.remove()


class Taps:
    """Hosts behind ``switch``: the namespace of a container that only sleeps, in which node ``i``'s container runs."""

    def __init__(
        self, client: docker.DockerClient, name: str, labels: dict[str, str], image: str, nodes: Iterable[int]
    ) -> None:
        self.name: Final = name
        self.switch: Switch | None = None
        self._holders: dict[int, Container] = {}
        try:
            for i in nodes:
                self._holders[i] = client.containers.run(
                    image, ["infinity"], entrypoint=["sleep"], name=f"{name}-net-{i}", labels=labels, detach=True,
                    network_mode="none", healthcheck={"test": ["NONE"]},
                )  # fmt: skip
                pid = pid_of(self._holders[i])
                command("ip", "netns", "attach", self._namespace(i), str(pid))
            self.switch = Switch({i: (self._namespace(i), DEVICE) for i in self._holders})
            for i in self._holders:
                lines = [
                    f"link set {DEVICE} txqueuelen {PORT_QUEUE_FRAMES}",
                    f"address add {self.address(i)}/24 dev {DEVICE}",
                    f"link set {DEVICE} up",
                    f"route replace {GROUP_ROUTE} dev {DEVICE}",
                ]
                command("ip", "-n", self._namespace(i), "-batch", "-", text="\n".join(lines))
        except BaseException:
            self.close()
            raise

    def _namespace(self, i: int) -> str:
        return f"{self.name}-{i}"

    interface: Final = "10.77.0.0/24"

    def address(self, i: int) -> str:
        return f"10.77.0.{i}"

    def create_options(self, i: int) -> dict[str, Any]:
        return {"network_mode": f"container:{self._holders[i].id}"}

    def started(self, i: int, container: Container) -> None:
        """Nothing to do: what is wrong is in the switch."""

    def stopped(self, i: int) -> None:
        """(the same)"""

    def heal(self) -> None:
        if self.switch is not None:
            self.switch.reset()

    def close(self) -> None:
        if self.switch is not None:
            self.switch.close()
            self.switch = None
        for i, holder in self._holders.items():
            subprocess.run(["ip", "netns", "delete", self._namespace(i)], capture_output=True)
            with contextlib.suppress(APIError):
                holder.remove(force=True, v=True)


def _device(pid: int) -> str:
    """The one device that a container has beside loopback; empty: none."""
    for line in in_namespace(pid, "ip", "-o", "link").splitlines():
        name = line.split(": ")[1].partition("@")[0]
        if name != "lo":
            return name
    return ""


def pid_of(container: Container) -> int:
    """The first process of a running container, as this machine numbers it; 0: it does not run."""
    container.reload()
    return int(container.attrs["State"]["Pid"])
