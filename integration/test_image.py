"""The image: whom it runs as, what is in it, how it starts, ends and says that it is well; and docker-compose.yml."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
import pytest

from integration.cluster import LABEL, connect_docker
from integration.collect import agents, collect
from integration.image import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ALONE = {
    "OCFCLUSTER_NODES": "1",
    "OCFCLUSTER_NODE_ID": "1",
    "OCFCLUSTER_INTERFACE": "lo",
    "OCFCLUSTER_TOPICS": "a, b",
}


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = connect_docker()
    yield client
    client.close()


def run(image: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = [f"--env={key}={value}" for key, value in environment.items()]
    return subprocess.run(
        ["docker", "run", "--rm", f"--label={LABEL}={os.getpid()}", *options, image, *argv],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_it_runs_as_nobody_in_particular_and_can_make_nothing(
    image: str, client: docker.DockerClient
) -> None:
    attributes = client.images.get(image).attrs["Config"]
    assert attributes["User"] == "ocfcluster"
    assert attributes["StopSignal"] == "SIGTERM"
    assert list(attributes["Volumes"]) == ["/var/lib/ocfcluster"]
    script = (
        "id -u; command -v gcc cc make; ls /opt/ocfcluster/bin; touch /opt/ocfcluster/x || echo not writable"
    )
    done = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint=sh", image, "-c", script], capture_output=True, text=True
    )
    user, *there = done.stdout.split("\n")
    assert user == "5405"
    assert not {"gcc", "cc", "make", "pip", "pip3"} & {Path(line).name for line in there}
    assert "not writable" in there


def test_what_is_missing_in_the_environment_is_named(image: str) -> None:
    assert "OCFCLUSTER_NODES" in run(image).stderr
    assert "OCFCLUSTER_NODE_ID" in run(image, OCFCLUSTER_NODES="1, 2, 3").stderr
    refused = run(image, OCFCLUSTER_NODES="1, 2, 3", OCFCLUSTER_NODE_ID="1")
    assert refused.returncode == 2
    assert "security.insecure" in refused.stderr
    assert run(image, "--version").stdout.startswith("ocfcluster ")


def test_an_agent_is_healthy_answers_and_leaves_on_sigterm(
    image: str, client: docker.DockerClient, tmp_path: Path
) -> None:
    container = client.containers.run(
        image, environment=ALONE, detach=True, labels={LABEL: str(os.getpid())}, read_only=True, cap_drop=["ALL"],
        tmpfs={"/tmp": "", "/run/ocfcluster": "uid=5405,gid=5405,mode=0750"},
        healthcheck={"interval": 500_000_000, "start_period": 500_000_000},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            container.reload()
            if container.attrs["State"]["Health"]["Status"] == "healthy":
                break
            assert time.monotonic() < deadline, (container.attrs["State"], container.logs())
            time.sleep(0.2)
        code, said = container.exec_run(["ocfcluster", "topic", "list", "--json"])
        assert code == 0
        assert b'"a"' in said
        assert b'"b"' in said

        assert container.name in [one.name for one in agents(client, None)]
        archive = collect(tmp_path / "all.tar.gz", [container])
        with tarfile.open(archive) as opened:
            names = {name.partition("/")[2] for name in opened.getnames()}
            status = opened.extractfile(f"{container.name}/status.json")
            assert status is not None
            assert json.load(status)["state"] == "active"
        assert {"agent.log", "docker-inspect.json", "versions.json", "agent.toml", "missing.txt"} <= names

        container.stop(timeout=20)
        assert container.wait()["StatusCode"] == 0
        assert '"event": "stopped"' in container.logs().decode()
        with tarfile.open(collect(tmp_path / "stopped.tar.gz", [container])) as opened:
            assert f"{container.name}/not-collected.txt" in opened.getnames()
    finally:
        container.remove(force=True, v=True)


# --- docker-compose.yml -----------------------------------------------------------------------------------------------


class Project:
    """One Compose project from docker-compose.yml, as ``docker compose up`` makes it but for the image."""

    def __init__(self, image: str, **environment: str) -> None:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        self._command = ["docker", "compose"] if plugin else ["docker-compose"]
        self.name = f"ocftest{os.getpid()}"
        self._environment = {
            **os.environ, "OCFCLUSTER_IMAGE": image, "OCFCLUSTER_SUBNET": f"10.89.{os.getpid() % 256}", **environment,
        }  # fmt: skip

    def __call__(self, *argv: str, profile: str = "", timeout_s: float = 120.0) -> str:
        profiles = ["--profile", profile] if profile else []
        done = subprocess.run(
            [*self._command, "--project-name", self.name, *profiles, *argv],
            cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, client: docker.DockerClient, service: str) -> docker.models.containers.Container:
        labels = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        return client.containers.list(all=True, filters={"label": labels})[0]


def lines(container: docker.models.containers.Container) -> list[str]:
    """Seq and text of each event that a subscriber has printed."""
    return re.findall(r"^demo (\d+ publisher \d, event \d+)$", container.logs().decode(), re.MULTILINE)


def one_order_is_shown(project: Project, client: docker.DockerClient, beyond: int) -> int:
    """Wait until both subscribers have printed more than so many events, of both publishers, alike; how many. None is
    missing, unless a busy machine has let one node be left behind, which its subscriber was told."""
    shown: Sequence[list[str]] = [[]]
    deadline = time.monotonic() + 60
    while min(map(len, shown)) < beyond:
        assert time.monotonic() < deadline, shown
        time.sleep(0.3)
        shown = [lines(project.container(client, f"subscriber-{i}")) for i in (2, 3)]
    both = set(shown[0]) & set(shown[1])
    numbers = sorted(int(line.split()[0]) for line in both)
    told = [project.container(client, f"subscriber-{i}").logs().decode() for i in (2, 3)]
    if not any("gap" in text for text in told):
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), shown
    assert len({line.split()[0] for line in {*shown[0], *shown[1]}}) == len({*shown[0], *shown[1]})
    assert {line.split()[2] for line in both} == {"1,", "2,"}
    return len(numbers)


needs_compose = pytest.mark.skipif(
    shutil.which("docker-compose") is None
    and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0,
    reason="needs Compose (apt-get install docker-compose)",
)


@needs_compose
def test_compose_brings_up_a_cluster_that_shows_one_order(image: str, client: docker.DockerClient) -> None:
    project = Project(image)
    try:
        project("up", "--detach")
        seen = one_order_is_shown(project, client, 6)
        project("up", "--detach", profile="five")
        deadline = time.monotonic() + 60
        while True:
            agent = project.container(client, "agent-1")
            members = json.loads(agent.exec_run(["ocfcluster", "members", "--json"]).output)
            if len(members) == 5:
                break
            assert time.monotonic() < deadline, members
            time.sleep(0.3)
        assert one_order_is_shown(project, client, seen + 2) > seen
        assert len(agents(client, project.name)) == 5
    finally:
        project("down", "--volumes", "--timeout", "5", profile="five")
    assert not client.containers.list(
        all=True, filters={"label": f"com.docker.compose.project={project.name}"}
    )


@pytest.mark.long
@needs_compose
def test_compose_does_so_without_multicast(image: str, client: docker.DockerClient) -> None:
    project = Project(image, OCFCLUSTER_TRANSPORT="unicast")
    try:
        project("up", "--detach")
        one_order_is_shown(project, client, 6)
        said = project.container(client, "agent-2").exec_run(["ocfcluster", "status", "--json"]).output
        assert json.loads(said)["transport"] == "unicast"
    finally:
        project("down", "--volumes", "--timeout", "5")
