"""A cluster of containers, for tests and for the chaos run.

    with ContainerCluster(3, image, topics=["news"]) as cluster:
        cluster.kill(2)

Each node is a container of the image, with a configuration, a state directory and a socket directory of its own, which
are directories of this machine: programs beside the agents are processes of this machine that use the sockets, so they
live on when a container dies. ``exec`` runs one in a container instead.

Everything made carries the label LABEL with the owner's process id. The end of the block removes it; what a dead owner
left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import docker
from docker.errors import APIError, NotFound
from docker.models.containers import Container

from integration.network import Bridge, Taps, pid_of
from tests.cluster import LOG_LINES, POLL_S, ROOT, START_TIMEOUT_S, BaseCluster, ClusterError, Topics, toml
from tests.netns.programs import COMPONENTS

PAUSE_ATTEMPTS: Final = 5
LABEL: Final = "ocfcluster.test"
USER: Final = 5405  # of the agent, in the image
STOP_S: Final = 20
MEMORY_BYTES: Final = 96 << 20  # of a container that is to have too little, an agent takes about half
SHARED_MEMORY_BYTES: Final = 256 << 20  # of each container's /dev/shm, which counts as its memory
ALL_MEMORY_BYTES: Final = 8 << 30  # a limit once set can be raised, not taken away
CONFIGURATION: Final = "/etc/ocfcluster/agent.toml"
STATE: Final = "/var/lib/ocfcluster"
PYTHON: Final = "/opt/ocfcluster/bin/python"  # in the image
PROJECT: Final = "/project"  # where the image's programs find the tests' code
WALL_CLOCK: Final = f"{PROJECT}/wall_clock.py"
_serial: Final = itertools.count()


def connect_docker() -> docker.DockerClient:
    return docker.from_env(timeout=120)


def remove_leftovers(client: docker.DockerClient) -> None:
    """Remove containers and networks of owners that are dead."""
    # Others remove theirs meanwhile: what goes between being listed and being looked at is no leftover.
    for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True):
        if not _lives(container.labels[LABEL]):
            with contextlib.suppress(APIError):
                container.remove(force=True, v=True)
    for network in client.networks.list(filters={"label": LABEL}):
        if not _lives(network.attrs["Labels"][LABEL]):
            with contextlib.suppress(APIError):
                network.remove()


def _lives(owner: str) -> bool:
    return Path("/proc", owner).exists()


class ContainerCluster(BaseCluster):
    """Nodes 1 to ``n``. ``link`` "switch" puts them behind the switch in user space (``network.switch``).

    With ``clocks``, a number of seconds for each node, the agents' wall clocks are so far ahead, and ``set_clock``
    makes one jump.

    Keyword arguments are sections of the configuration, as for the other clusters of the tests.
    """

    def __init__(
        self,
        n: int,
        image: str,
        *,
        link: Literal["bridge", "switch"] = "bridge",
        transport: Literal["multicast", "unicast"] = "multicast",
        delivery: str = "safe",
        topics: Topics = (),
        clocks: Mapping[int, float] | None = None,
        **config: Mapping[str, Any],
    ) -> None:
        super().__init__(
            n,
            {"transport": transport},
            delivery=delivery,
            topics=topics,
            config={"components": COMPONENTS, **config},
        )
        self.images: Final = dict.fromkeys(self.nodes, image)  # of each node's next container
        self._image = image
        self._differs: dict[int, dict[str, dict[str, Any]]] = {}
        self._transport = transport
        self._client = connect_docker()
        self._labels = {LABEL: str(os.getpid())}
        self._containers: dict[int, Container] = {}
        self._mounts: list[Path] = []
        self.name: Final = f"ocf-test-{os.getpid()}-{next(_serial)}"
        self.shared: Final = self.directory / "shared"  # seen in all containers under this path
        self.shared.mkdir()
        self.shared.chmod(0o777)
        self.clocks: Final = dict(clocks or {})  # seconds ahead, as they are now
        for i, seconds in self.clocks.items():
            self.set_clock(i, seconds)
        remove_leftovers(self._client)
        try:
            self.network: Bridge | Taps = (
                Bridge(self._client, self.name, self._labels)
                if link == "bridge"
                else Taps(self._client, self.name, self._labels, image, self.nodes)
            )
        except BaseException:
            self._client.close()
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        self.hosts = self.network  # as the other clusters call it

    # --- where things are -------------------------------------------------------------------------------------------

    def socket(self, i: int) -> str:
        return str(self.directory / f"run-{i}" / "agent.sock")

    def state_dir(self, i: int) -> Path:
        return self.directory / f"state-{i}"

    def container(self, i: int) -> Container:
        return self._containers[i]

    def agents(self) -> list[Container]:
        """All containers that there are."""
        return list(self._containers.values())

    def pid(self, i: int) -> int:
        """The agent's process; 0: it does not run."""
        return pid_of(self._containers[i]) if i in self._containers else 0

    def running(self, i: int) -> bool:
        return self.pid(i) != 0

    def configuration(self, i: int) -> dict[str, Any]:
        document = super().configuration(i)
        document["node"].update(state_dir=STATE)
        document["network"]["interface"] = self.network.interface
        if self._transport == "unicast":
            document["network"]["peers"] = [self.network.address(j) for j in self.nodes]
        for section, values in self._differs.get(i, {}).items():
            document[section].update(values)
        return document

    def differ(self, i: int, **sections: dict[str, Any]) -> None:
        """Before its start: node ``i``, which may be one beyond ``nodes``, has these settings instead."""
        self._differs[i] = sections

    def set_clock(self, i: int, seconds: float) -> None:
        """Node ``i``'s wall clock jumps: it is so far ahead of this machine's from now on."""
        self.clocks[i] = seconds
        # In one write over all of what was there, for it may be read meanwhile.
        with self._clock(i).open("r+" if self._clock(i).exists() else "w") as file:
            file.write(f"{seconds:<31}\n")

    def _clock(self, i: int) -> Path:
        return self.directory / f"clock-{i}"

    # --- the agents' lives ------------------------------------------------------------------------------------------

    def create(self, i: int) -> Container:
        """Make node ``i``'s container, which does not run yet."""
        for directory in (Path(self.socket(i)).parent, self.state_dir(i)):
            directory.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # a state directory that a test has made read-only
                os.chown(directory, USER, USER)
        file = self.directory / f"{i}.toml"
        file.write_text(toml(self.configuration(i)), "utf-8")
        file.chmod(0o644)
        run = str(Path(self.socket(i)).parent)
        volumes, environment, command = {}, {}, {}
        if i in self.clocks:
            clock = str(self._clock(i))
            volumes = {
                str(ROOT / "integration" / "wall_clock.py"): {"bind": WALL_CLOCK, "mode": "ro"},
                clock: {"bind": clock, "mode": "ro"},
            }
            environment = {"OCFCLUSTER_WALL_CLOCK": clock}
            command = {"entrypoint": [PYTHON, WALL_CLOCK], "command": ["agent", "--config", CONFIGURATION]}
        self._containers[i] = self._client.containers.create(
            self.images.get(i, self._image),
            name=f"{self.name}-node-{i}",
            labels=self._labels,
            # Not the image's health check: with many agents on one machine it is a load of its own.
            healthcheck={"test": ["NONE"]},
            volumes={
                str(file): {"bind": CONFIGURATION, "mode": "ro"},
                str(self.state_dir(i)): {"bind": STATE},
                run: {"bind": run},
                str(self.shared): {"bind": str(self.shared)},
                str(ROOT / "tests"): {"bind": f"{PROJECT}/tests", "mode": "ro"},
                **volumes,
            },
            shm_size=SHARED_MEMORY_BYTES,
            environment={"OCFCLUSTER_SOCKET": self.socket(i), **environment},
            **command,
            **self.network.create_options(i),
        )
        return self._containers[i]

    def start_agent(self, i: int) -> None:
        """Start node ``i``'s container, or a new one where there is none."""
        container = self._containers.get(i) or self.create(i)
        container.start()
        self.network.started(i, container)

    def stop_agent(self, i: int, *, kill: bool = False) -> int:
        """docker stop, or docker kill; the exit status of the agent."""
        container = self._containers[i]
        with contextlib.suppress(APIError):  # it has ended by itself
            if kill:
                container.kill()
            else:
                container.stop(timeout=STOP_S)
        code = int(container.wait()["StatusCode"])
        self.network.stopped(i)
        return code

    def kill(self, i: int) -> None:
        """kill -9 of all that runs in the container."""
        self.stop_agent(i, kill=True)

    def restart(self, i: int) -> None:
        """docker restart: SIGTERM, then the same container again."""
        self._containers[i].restart(timeout=STOP_S)
        self.network.started(i, self._containers[i])

    def remove(self, i: int) -> None:
        """docker rm --force; the state directory stays. ``start_agent`` makes another container."""
        container = self._containers.pop(i)
        self._keep_log(i, container)
        container.remove(force=True, v=True)
        self.network.stopped(i)

    def exhaust_memory(self, i: int) -> None:
        """More memory is asked for in the container than it may have. The kernel kills what has most, the agent."""
        container = self._containers[i]
        container.update(mem_limit=MEMORY_BYTES, memswap_limit=MEMORY_BYTES)
        container.exec_run(["dd", "if=/dev/zero", "of=/dev/shm/filler", "bs=1M"])
        container.wait(timeout=STOP_S)
        container.reload()
        if not container.attrs["State"]["OOMKilled"]:
            raise ClusterError(f"node {i} did not die of memory\n{self.last_words()}")
        container.update(mem_limit=ALL_MEMORY_BYTES, memswap_limit=ALL_MEMORY_BYTES)
        self.network.stopped(i)

    def pause(self, i: int) -> None:
        """docker pause. On a busy machine runc gives up freezing, thaws what it had frozen, and wants to be asked
        again."""
        for attempt in range(PAUSE_ATTEMPTS):
            try:
                self._containers[i].pause()
                return
            except APIError as error:
                if "unable to freeze" not in str(error) or attempt == PAUSE_ATTEMPTS - 1:
                    raise

    def unpause(self, i: int) -> None:
        self._containers[i].unpause()

    def wipe(self, i: int) -> None:
        """Empty node ``i``'s state directory, as if its disk were new."""
        for path in self.state_dir(i).iterdir():
            path.unlink()

    def small_disk(self, i: int, size_bytes: int) -> Path:
        """Before the start: give node ``i`` a state directory on a disk of its own."""
        directory = self.state_dir(i)
        directory.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "tmpfs", str(directory)]
        subprocess.run(command, check=True, capture_output=True)
        self._mounts.append(directory)
        return directory

    def wait_active(self, nodes: Iterable[int] | None = None, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        for i in self.nodes if nodes is None else nodes:
            while (state := self._state(i)) != "active":
                if not self.running(i):
                    raise ClusterError(f"the container of node {i} has ended\n{self.last_words()}")
                if time.monotonic() > deadline:
                    raise ClusterError(f"node {i} is {state!r} after {timeout_s:g} s\n{self.last_words()}")
                time.sleep(POLL_S)

    # --- programs ---------------------------------------------------------------------------------------------------

    def exec(self, i: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in node ``i``'s container; Python is the image's."""
        argv = [PYTHON if word == sys.executable else word for word in argv]
        command = ["docker", "exec", "--workdir", PROJECT, f"{self.name}-node-{i}", *argv]
        return subprocess.Popen(command, **options)

    # --- the end ----------------------------------------------------------------------------------------------------

    def logs(self, i: int) -> str:
        """What node ``i``'s agents have written, removed containers included."""
        before = self.log(i).read_text("utf-8", "replace") if self.log(i).exists() else ""
        container = self._containers.get(i)
        return before + (container.logs().decode("utf-8", "replace") if container is not None else "")

    def _keep_log(self, i: int, container: Container) -> None:
        with self.log(i).open("ab") as file:
            file.write(container.logs())

    def last_words(self) -> str:
        text = []
        for i in self.nodes:
            lines = self.logs(i).splitlines()
            text += [f"--- node {i}, last of {len(lines)} lines", *lines[-LOG_LINES:]]
        return "\n".join(text)

    def start(self) -> Self:
        try:
            for i in self.nodes:
                self.create(i)
            for i in self.nodes:
                self.start_agent(i)
            self.wait_active()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Remove all of it. May be called again."""
        for i in list(self._containers):
            container = self._containers.pop(i)
            with contextlib.suppress(APIError):
                container.remove(force=True, v=True)
        self.network.close()
        for mount in self._mounts:
            subprocess.run(["umount", str(mount)], capture_output=True)
        self._mounts.clear()
        self._client.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def image_exists(client: docker.DockerClient, name: str) -> bool:
    try:
        client.images.get(name)
    except NotFound:
        return False
    return True
