"""What a system must offer to be compared: this class, in a module of its own, listed in ``bench.compare.peers``.

A measurement is made of **programs**, each in a host. A program does one of these, told on its command line:

    subscribe EVENTS EVENT_BYTES              take so many events
    publish EVENTS EVENT_BYTES                publish so many events
    member TAKE GIVE EVENT_BYTES              both at once, for a system whose publishers are subscribers anyway
    latency WARM_UP SAMPLES EVENT_BYTES       publish one event, await it, and so on

It prints ``ready`` when it is connected (and subscribed: nothing is missed from there on), waits for a line ``go``
if it publishes, and prints one JSON object at the end. A subscriber gives up when nothing has come for some seconds.

    {"events", "first", "last", "cpu_s", "lost"}             after subscribe, publish and member: events counted
                                                             between two moments (s, monotonic clock); of what it took
    {"samples", "min_us", "p50_us", "p99_us", "max_us", "cpu_s"}                                     after latency

``cpu_s`` is the process's CPU time, user and system, without its start; ``lost`` may be absent where nothing can be.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from bench.compare.install import VENV, Tree
from tests.cluster import ROOT, end_with_parent
from tests.netns.hosts import Hosts

READY_S: Final = 30.0
START_S: Final = 20.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class PeerError(Exception):
    """A system, or a program of a measurement, did not do what was asked; its last words are above."""


class Program:
    """A program that runs, or a work order to one that stays (``order``: the line it is told by)."""

    def __init__(self, process: subprocess.Popen[bytes], order: str = "") -> None:
        self._process = process
        self._stays = bool(order)
        self._read = b""
        if order:
            self.write(order)

    def write(self, line: str) -> None:
        if self._process.stdin is None:
            raise ValueError("a program is started with pipes")
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(f"a program has ended: {self._name}") from None

    def wait_ready(self) -> None:
        """Raises PeerError when it does not come so far."""
        line = self._line(READY_S)
        if line != "ready":
            raise PeerError(f"a program did not start, but said {line!r}: {self._name}")

    def go(self) -> None:
        self.write("go")

    def report(self, timeout_s: float) -> dict[str, Any]:
        """What it measured. Raises PeerError when it fails or takes longer."""
        line = self._line(timeout_s)
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise PeerError(f"a program said {line!r} instead of a report: {self._name}") from None
        return found

    def end(self) -> None:
        """Kill it, unless it is one that stays."""
        if self._stays:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    @property
    def _name(self) -> str:
        return " ".join(map(str, self._process.args)) if isinstance(self._process.args, list) else ""

    def _line(self, timeout_s: float) -> str:
        if self._process.stdout is None:
            raise ValueError("a program is started with pipes")
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._read:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise PeerError(f"a program said nothing for {timeout_s:g} s: {self._name}")
            more = os.read(self._process.stdout.fileno(), 65_536)
            if not more:
                raise PeerError(f"a program ended without a report: {self._name}")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("utf-8", "replace")


class Peer(ABC):
    """One system on three hosts. ``start``, any number of programs, ``stop``; both may be called again."""

    name: str  # on the command line and in the JSON
    title: str  # in tables and pictures
    guarantee: ClassVar[str]  # what is promised, as it is configured here
    total_order: ClassVar[bool]  # all subscribers get all publishers' events in one order
    api: ClassVar[str]  # of publisher and subscriber
    waits_for: ClassVar[str] = "its own event, from publish to delivery"  # what a sample of latency is
    debian: ClassVar[tuple[str, ...]] = ()  # packages that ``install`` unpacks
    needs: ClassVar[tuple[tuple[str, str], ...]] = ()  # a file of those (see Tree.find), and its package
    pypi: ClassVar[bool] = False  # it is in requirements/peers.txt
    tools: ClassVar[tuple[tuple[str, str], ...]] = ()  # a program on the PATH, and its Debian package
    member: ClassVar[bool] = False  # a program of a host publishes and subscribes

    def __init__(self) -> None:
        self.tree: Final = Tree(self.name)
        self._hosts: Hosts | None = None
        self._daemons: dict[int, subprocess.Popen[bytes]] = {}

    # --- what a peer says -----------------------------------------------------------------------------------------

    @abstractmethod
    def build(self) -> None:
        """Compile its clients. Raises InstallError."""

    @abstractmethod
    def version(self) -> str:
        """What the figures are of."""

    @abstractmethod
    def start(self, hosts: Hosts, directory: Path) -> None:
        """Start what runs all the time on each host, and wait until it works. ``directory`` is empty, and its own.

        Raises PeerError; ``stop`` is called then, too.
        """

    @abstractmethod
    def command(self, i: int, role: str) -> list[str]:
        """The program that does ``role`` in host ``i``; the numbers come behind it."""

    def daemons(self) -> Mapping[int, int]:
        """Host and process id of what runs all the time; its CPU time counts."""
        return {i: daemon.pid for i, daemon in self._daemons.items()}

    def stop(self) -> None:
        """End what ``start`` started."""
        for daemon in self._daemons.values():
            self.hosts.end(daemon)
            for stream in (daemon.stdin, daemon.stdout):
                if stream is not None:
                    stream.close()
        self._daemons.clear()

    def missing(self) -> list[str]:
        """What is not on this machine, each with what to do about it."""
        names = [name for path, name in self.needs if self.tree.find(path) is None]
        if self.pypi and not VENV.exists():
            names.append("its Python package")
        found = [f"{', '.join(names)} (python -m bench.compare --install {self.name})"] if names else []
        return found + [
            f"{tool} (apt-get install {package})"
            for tool, package in self.tools
            if shutil.which(tool) is None
        ]

    # --- what they have in common ---------------------------------------------------------------------------------

    @property
    def hosts(self) -> Hosts:
        if self._hosts is None:
            raise PeerError(f"{self.name} is not started")
        return self._hosts

    def publisher_host(self) -> int:
        """Where a single publisher is: not on the host of a sequencer, where there is one."""
        return 1

    def environment(self) -> dict[str, str]:
        libraries = [self.tree.libraries, os.environ.get("LD_LIBRARY_PATH", "")]
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries))}

    def popen(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start something in host ``i``; it ends with this process, and with the hosts."""
        options = {"cwd": ROOT, "env": self.environment(), "preexec_fn": end_with_parent, **options}
        return self.hosts.popen(i, argv, **options)

    def start_daemon(self, i: int, argv: Sequence[str], directory: Path) -> None:
        """Start what runs all the time in host ``i``; what it says goes to a file, see ``await_words``."""
        with (directory / f"{i}.log").open("wb") as log:
            self._daemons[i] = self.popen(i, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_words(self, words: str, directory: Path, times: int = 1) -> None:
        """Wait until every daemon has said ``words`` so many times. Raises PeerError with what one said instead."""
        deadline = time.monotonic() + START_S
        for i, daemon in self._daemons.items():
            log = directory / f"{i}.log"
            while log.read_text("utf-8", "replace").count(words) < times:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text("utf-8", "replace")[-2000:]
                    raise PeerError(f"{self.name} of host {i} did not come to {words!r}; it said:\n{said}")
                time.sleep(0.05)

    def program(self, i: int, role: str, *numbers: int, way: str = "") -> Program:
        """Start a program of a measurement; ``way`` as in Throughput."""
        argv = [*self.command(i, role), *map(str, numbers)]
        return Program(self.popen(i, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))

    def cpu_s(self) -> dict[int, float]:
        """CPU seconds of each daemon so far, user and system."""
        return {i: _cpu_s(pid) for i, pid in self.daemons().items()}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
