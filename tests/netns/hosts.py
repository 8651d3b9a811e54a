"""Several hosts on one machine: network namespaces joined by a bridge, or by the switch in user space.

    with Hosts(3, link="switch") as hosts:
        hosts.set_loss(5)
        agent = hosts.popen(1, ["ping", "-c1", hosts.address(2)])

Hosts are numbered from 1. Each has a device ``eth0`` with 10.77.0.i/24 and fd77::i/64, a route for multicast, and
knows the others' Ethernet addresses from the start (so no ARP is lost, or uses up random numbers of a link).

The bridge has a namespace of its own: in the root namespace a firewall made for containers may drop what crosses it.
Names carry the owner's process id; what a dead owner left is removed by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Literal, Self

from tests.netns.switch import PORT_QUEUE_FRAMES, Switch, inside

NAMESPACES: Final = Path("/run/netns")
DEVICE: Final = "eth0"
GROUP_ROUTE: Final = "224.0.0.0/4"
ENDING_S: Final = 3.0  # what still runs in a host has this long after SIGTERM

_NAME: Final = re.compile(r"ocf-(\d+)-\d+-\w+")
_serial: Final = itertools.count()
_open: Final[weakref.WeakSet[Hosts]] = weakref.WeakSet()


def command(*argv: str, text: str | None = None) -> str:
    """Run a system tool, return what it prints; RuntimeError with its words when it fails."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}\n{text or ''}")
    return done.stdout


class Hosts:
    """``n`` hosts on one network; a context manager. ``switch`` is the Switch when ``link`` is "switch".

    On a bridge, impairments are packet filters at each receiver: loss and cuts only. On the switch there are also
    delay, jitter, reordering and duplication: ``hosts.switch.set(i, j, delay_ms=2, ...)``.
    """

    def __init__(
        self, n: int, link: Literal["bridge", "switch"] = "bridge", mtu: int = 1500, *, seed: int = 0
    ) -> None:
        if link not in ("bridge", "switch") or not 1 <= n <= 250:
            raise ValueError(f"{n} hosts on a {link!r}")
        self.numbers: Final = range(1, n + 1)
        self.link: Final = link
        self.mtu: Final = mtu
        self.switch: Switch | None = None
        self._seed = seed
        self._prefix = f"ocf-{os.getpid()}-{next(_serial)}"
        self._bridge = f"{self._prefix}-bridge"
        self._owner = os.getpid()
        self._processes: list[tuple[int, subprocess.Popen[Any]]] = []
        self._loss_percent = 0.0
        self._cuts: set[tuple[int, int]] = set()

    def namespace(self, i: int) -> str:
        if i not in self.numbers:
            raise ValueError(f"no host {i}; there are {self.numbers[0]} to {self.numbers[-1]}")
        return f"{self._prefix}-h{i}"

    def address(self, i: int, family: Literal[4, 6] = 4) -> str:
        """The address of host ``i`` without its prefix length."""
        self.namespace(i)
        return f"10.77.0.{i}" if family == 4 else f"fd77::{i}"

    # --- building and taking down ---------------------------------------------------------------------------

    def open(self) -> Self:
        """Make the hosts; nothing stays when that fails."""
        remove_leftovers()
        _guard_exit()
        _open.add(self)
        try:
            for i in self.numbers:
                command("ip", "netns", "add", self.namespace(i))
            if self.link == "switch":
                ports = {i: (self.namespace(i), DEVICE) for i in self.numbers}
                self.switch = Switch(ports, seed=self._seed, mtu=self.mtu)
            else:
                self._make_bridge()
            for i in self.numbers:
                self._configure(i)
        except BaseException:
            self.close()
            raise
        return self

    def _make_bridge(self) -> None:
        command("ip", "netns", "add", self._bridge)
        # No snooping: without a querier a snooping bridge forgets who is in a group after some minutes.
        lines = ["link add bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0"]
        for i in self.numbers:
            lines += self._cable(i)
        lines.append("link set bridge up")
        command("ip", "-n", self._bridge, "-batch", "-", text="\n".join(lines))

    def _cable(self, i: int) -> list[str]:
        peer = f"peer name {DEVICE} mtu {self.mtu} netns {self.namespace(i)}"
        return [
            f"link add port{i} mtu {self.mtu} type veth {peer}",
            f"link set port{i} master bridge up",
        ]

    def _configure(self, i: int) -> None:
        space = self.namespace(i)
        settings = (
            f"net.ipv6.conf.{DEVICE}.accept_ra=0",
            f"net.ipv6.conf.{DEVICE}.router_solicitations=0",
            f"net.ipv6.conf.{DEVICE}.accept_dad=0",
        )
        command("ip", "netns", "exec", space, "sysctl", "-qw", *settings)
        lines = [
            "link set lo up",
            f"link set {DEVICE} address {_ethernet_address(i)} mtu {self.mtu} txqueuelen {PORT_QUEUE_FRAMES}",
            f"address add {self.address(i)}/24 dev {DEVICE}",
            *self._up(i),
        ]
        command("ip", "-n", space, "-batch", "-", text="\n".join(lines))

    def _up(self, i: int) -> list[str]:
        """The lines that bring host ``i``'s device up, with what the kernel forgets while it is down."""
        lines = [
            f"address replace {self.address(i, 6)}/64 dev {DEVICE} nodad",
            f"link set {DEVICE} up",
            f"route replace {GROUP_ROUTE} dev {DEVICE}",
        ]
        for j in self.numbers:
            if j != i:
                for address in (self.address(j), self.address(j, 6)):
                    lines.append(
                        f"neighbour replace {address} lladdr {_ethernet_address(j)} dev {DEVICE} nud permanent"
                    )
        return lines

    def close(self) -> None:
        """End what was started in the hosts and remove them. May be called again, and on a half-made network."""
        if os.getpid() != self._owner:  # a forked child owns nothing
            return
        for _, process in self._processes:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + ENDING_S
        for _, process in self._processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        self._processes.clear()
        if self.switch is not None:
            self.switch.close()
            self.switch = None
        for name in [*(self.namespace(i) for i in self.numbers), self._bridge]:
            _remove_namespace(name)
        _open.discard(self)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- programs in the hosts ------------------------------------------------------------------------------

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in host ``i``, in a process group of its own; ended with the hosts at the latest."""
        options.setdefault("start_new_session", True)
        process: subprocess.Popen[Any] = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(i), *argv], **options
        )
        self._processes.append((i, process))
        return process

    def run(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program in host ``i`` to its end; output is captured as text unless ``options`` say else.

        ``check`` is on, and a timeout of 60 s, unless they say else, too.
        """
        options = {"check": True, "timeout": 60.0, "capture_output": True, "text": True, **options}
        return subprocess.run(["ip", "netns", "exec", self.namespace(i), *argv], **options)

    def socket(
        self,
        i: int,
        family: socket.AddressFamily = socket.AF_INET,
        kind: socket.SocketKind = socket.SOCK_DGRAM,
    ) -> socket.socket:
        """A socket of this process that is in host ``i``'s network. The caller closes it."""
        with inside(self.namespace(i)):
            return socket.socket(family, kind)

    def end(self, process: subprocess.Popen[Any], *, kill: bool = False) -> int:
        """End the process group of a program started by ``popen``; its exit status."""
        _signal_group(process, signal.SIGKILL if kill else signal.SIGTERM)
        try:
            return process.wait(timeout=ENDING_S)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            return process.wait()

    # --- what is wrong with the network ---------------------------------------------------------------------

    def set_loss(self, percent: float) -> None:
        """Lose this share (0 to 100) of the frames on every directed link, whatever they carry."""
        if not 0.0 <= percent <= 100.0:
            raise ValueError(f"loss is from 0 to 100 percent, not {percent}")
        if self.switch is not None:
            self.switch.set(loss=percent / 100.0)
            return
        self._loss_percent = percent
        for i in self.numbers:
            # A veth pair carries a segmented send as one buffer, and a filter would lose it whole: cut it before.
            segments = 1 if percent else 65535
            command("ip", "-n", self.namespace(i), "link", "set", DEVICE, "gso_max_segs", str(segments))
        self._filter(self.numbers)

    def cut(self, i: int, j: int, *, one_way: bool = False) -> None:
        """Nothing from ``i`` reaches ``j`` any more, and unless ``one_way`` nothing from ``j`` reaches ``i``."""
        self._cut({(i, j)} if one_way else {(i, j), (j, i)})

    def isolate(self, *numbers: int) -> None:
        """Cut these hosts off from all others, and from each other."""
        self._cut({(i, j) for i in self.numbers for j in self.numbers if i != j and {i, j} & {*numbers}})

    def mute(self, i: int) -> None:
        """Nobody hears host ``i``; it hears all."""
        self._cut({(i, j) for j in self.numbers if j != i})

    def _cut(self, links: set[tuple[int, int]]) -> None:
        for i, j in sorted(links):
            self.namespace(i)
            self.namespace(j)
            if self.switch is not None:
                self.switch.cut(i, j, one_way=True)
        if self.switch is None:
            self._cuts |= links
            self._filter({j for _, j in links})

    def link_down(self, i: int) -> None:
        """Take host ``i``'s device down, as an administrator would: its programs' sends fail."""
        command("ip", "-n", self.namespace(i), "link", "set", DEVICE, "down")

    def link_up(self, i: int) -> None:
        """Bring it up again, with addresses and routes."""
        command("ip", "-n", self.namespace(i), "-batch", "-", text="\n".join(self._up(i)))

    def unplug(self, i: int) -> None:
        """Pull host ``i``'s cable: its device has no carrier. On a bridge alone."""
        command("ip", "-n", self._bridge, "link", "set", f"port{i}", "down")

    def plug(self, i: int) -> None:
        command("ip", "-n", self._bridge, "link", "set", f"port{i}", "up")

    def take_device(self, i: int) -> None:
        """Host ``i`` has no device any more. On a bridge alone."""
        command("ip", "-n", self._bridge, "link", "delete", f"port{i}")

    def give_device(self, i: int) -> None:
        """Another one, of the same name and addresses."""
        command("ip", "-n", self._bridge, "-batch", "-", text="\n".join(self._cable(i)))
        self._configure(i)

    def heal(self) -> None:
        """Undo all cuts; loss stays as it is set."""
        if self.switch is not None:
            self.switch.heal()
            return
        receivers = {j for _, j in self._cuts}
        self._cuts.clear()
        self._filter(receivers)

    def _filter(self, receivers: Iterable[int]) -> None:
        """Write the packet filter of these hosts anew, each in one transaction."""
        for i in sorted(receivers):
            rules = [
                f"ether saddr {_ethernet_address(sender)} drop"
                for sender, receiver in sorted(self._cuts)
                if receiver == i
            ]
            if self._loss_percent:
                # Only what came over the cable: multicast that this host loops back to itself is not lost.
                limit = round(self._loss_percent * 1000)
                rules.append(f"ether saddr != {_ethernet_address(i)} numgen random mod 100000 < {limit} drop")
            space = self.namespace(i)
            table = "\n".join(
                [
                    "table netdev cable",
                    "delete table netdev cable",
                    "table netdev cable {",
                    f"chain arrive {{ type filter hook ingress device {DEVICE} priority 0; policy accept;",
                    *rules,
                    "}",
                    "}",
                ]
            )
            command("ip", "netns", "exec", space, "nft", "-f", "-", text=table)


def _ethernet_address(i: int) -> str:
    return f"02:77:00:00:00:{i:02x}"


def _signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(process.pid, number)
            except PermissionError:  # it is about to leave, or leads no group
                process.send_signal(number)


def _remove_namespace(name: str) -> None:
    """End what runs in a namespace of ours, and remove it if it is there."""
    if not (NAMESPACES / name).exists():
        return
    for _ in range(50):
        found = command("ip", "netns", "pids", name).split()
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
    command("ip", "netns", "delete", name)


def remove_leftovers() -> list[str]:
    """Remove the namespaces of owners that are dead; their names."""
    removed = []
    for path in sorted(NAMESPACES.glob("ocf-*")):
        match = _NAME.fullmatch(path.name)
        if match is not None and not Path("/proc", match[1]).exists():
            with contextlib.suppress(RuntimeError):  # another test removes it at the same time
                _remove_namespace(path.name)
                removed.append(path.name)
    return removed


_guarded = False


def _guard_exit() -> None:
    """Take hosts down at exit too, and turn SIGTERM (which would end the process at once) into an exit."""
    global _guarded
    if _guarded:
        return
    _guarded = True
    atexit.register(_close_all)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _exit_in_order)


def _exit_in_order(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _close_all() -> None:
    for hosts in list(_open):
        with contextlib.suppress(RuntimeError, OSError):
            hosts.close()
