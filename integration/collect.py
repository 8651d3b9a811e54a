"""Logs, status, versions, configurations and traces of agents in containers, as one archive.

    python -m integration.collect FILE.tar.gz                         # of all containers of this project's images
    python -m integration.collect FILE.tar.gz --project NAME          # of one Compose project

In each container it runs what ``ocfcluster collect`` does on a host, and adds what Docker knows of it. A container that
does not run or does not answer is there with its log.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import docker
from docker.models.containers import Container

ANSWER_S: Final = 20.0  # for a container to collect
COMMAND: Final = "container-entrypoint"  # of this project's images


def collect(
    path: Path, containers: Iterable[Container], directories: Mapping[str, Path] | None = None
) -> Path:
    """Write the archive: a directory for each container, and ``directories`` under their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for container in containers:
            name = str(container.name)
            _add(archive, f"{name}/docker-inspect.json", json.dumps(container.attrs, indent=1).encode())
            _add(archive, f"{name}/agent.log", container.logs(timestamps=True))
            for file, content in _inside(container).items():
                _add(archive, f"{name}/{file}", content)
        for name, directory in (directories or {}).items():
            for file in sorted(directory.rglob("*")):
                if file.is_file():
                    archive.add(file, f"{name or directory.name}/{file.relative_to(directory)}")
    return path


def _inside(container: Container) -> dict[str, bytes]:
    """What ``ocfcluster collect`` gives there; a file that says why where it gives nothing."""
    container.reload()
    if container.status != "running":
        return {"not-collected.txt": f"the container is {container.status}\n".encode()}
    try:
        done = subprocess.run(
            ["docker", "exec", str(container.name), COMMAND, "collect", "-"],
            capture_output=True,
            timeout=ANSWER_S,
        )
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as inner:
            members = [member for member in inner.getmembers() if member.isfile()]
            return {
                member.name.partition("/")[2]: file.read()
                for member in members
                if (file := inner.extractfile(member)) is not None
            }
    except subprocess.TimeoutExpired:
        return {"not-collected.txt": b"the container does not answer: is it paused?\n"}
    except tarfile.TarError:
        return {"not-collected.txt": done.stderr or b"nothing came\n"}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def agents(client: docker.DockerClient, project: str | None) -> list[Container]:
    """The containers, running or not, whose program is an agent of this project's image."""
    filters = {"label": f"com.docker.compose.project={project}"} if project else {}
    return [
        container
        for container in client.containers.list(all=True, filters=filters)
        if container.attrs["Config"]["Entrypoint"] == [COMMAND]
        and container.attrs["Config"]["Cmd"][:1] == ["agent"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the archive, FILE.tar.gz")
    parser.add_argument("--project", help="of Compose; without it all containers of this project's images")
    options = parser.parse_args()
    client = docker.from_env(timeout=60)
    try:
        found = agents(client, options.project)
        if not found:
            print("there are no containers with agents here", file=sys.stderr)
            return 1
        print(f"{len(found)} containers in {collect(options.file, found)}")
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
