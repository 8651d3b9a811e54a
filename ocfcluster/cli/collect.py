"""``ocfcluster collect``: what somebody who helps wants to see of this node, as one archive."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import socket as sockets
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output

if TYPE_CHECKING:
    from ocfcluster.client import Client

DEFAULT_CONFIGURATION = Path("/etc/ocfcluster/agent.toml")
JOURNAL_LINES = 100_000
JOURNAL_TIMEOUT_S = 60
SYSTEM_FILES = (
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/net/igmp",
    "/proc/net/snmp",
    "/proc/net/udp",
    "/proc/sys/net/core/rmem_max",
    "/proc/sys/net/core/wmem_max",
)


def run(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="The archive, .tar.gz; - is stdout.",
            show_default="a name with host and time",
        ),
    ] = None,
    config: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="The agent's configuration.")
    ] = DEFAULT_CONFIGURATION,
    unit: Annotated[
        str, typer.Option("--unit", help="The agent's systemd unit, whose journal goes in.")
    ] = "ocfcluster",
    since: Annotated[str, typer.Option("--since", help="How far back the journal goes.")] = "-1d",
    socket: options.Socket = None,
) -> None:
    """Collect status, log, configuration and versions of this node into an archive, to look at or to send.

    No event data, no state and no key goes in. What cannot be had is named in missing.txt: an agent that does not run,
    say. Run it as root, or as a user who may read the journal and the configuration, on every node.

    Example: ocfcluster collect node-1.tar.gz
    """
    host = sockets.gethostname()
    name = f"ocfcluster-{host}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    to_stdout = str(file) == "-"
    missing: list[str] = []
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for part, inside in _parts(context, socket, config, unit, since, missing):
            entry = tarfile.TarInfo(f"{name}/{part}")
            entry.size, entry.mtime = len(inside), int(time.time())
            archive.addfile(entry, io.BytesIO(inside))
    if to_stdout:
        sys.stdout.buffer.write(content.getvalue())
    else:
        path = file or Path(f"{name}.tar.gz")
        _write(path, content.getvalue(), new=file is None)
        output.print_line(str(path))
    for line in missing:
        output.tell(line)


def _write(path: Path, archive: bytes, *, new: bool) -> None:
    """All of it, or nothing stays, for this user alone to read. ``new``: nothing may be there, under a name that others
    can foresee. Raises OSError, which names the file."""
    how = os.O_EXCL if new else os.O_TRUNC
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
        try:
            with open(descriptor, "wb") as opened:
                if path.is_file():
                    with contextlib.suppress(PermissionError):  # another's file, which says who may read it
                        os.fchmod(descriptor, 0o600)
                opened.write(archive)
        except OSError:
            if path.is_file():
                path.unlink(missing_ok=True)  # half an archive, which takes the room that is needed
            raise
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}; name a FILE where it can be written") from None


def _parts(
    context: typer.Context, socket: str | None, config: Path, unit: str, since: str, missing: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file."""
    yield "versions.json", _json(versions())
    path = options.socket_path(context, socket)
    try:
        with options.connect(context, path, orders=False) as client:
            for name, document in _of_the_agent(client):
                yield name, _json(document)
    except OSError as error:
        missing.append(f"status: {error.strerror}")
    for source, name in ((config, "agent.toml"), *((Path(one), one[1:]) for one in SYSTEM_FILES)):
        try:
            yield name, source.read_bytes()
        except OSError as error:
            missing.append(f"{source}: {error.strerror}")
    yield "interfaces.json", _json(_interfaces())
    journal = _journal(unit, since)
    if isinstance(journal, bytes):
        yield "journal.txt", journal
    else:
        missing.append(journal)
    if missing:
        yield "missing.txt", "\n".join([*missing, ""]).encode()


def _of_the_agent(client: Client) -> Iterator[tuple[str, Any]]:
    yield "status.json", client.status()
    yield "topics.json", [str(topic) for topic in client.topics()]


def versions() -> dict[str, Any]:
    """Of everything that matters here."""
    from importlib.metadata import distributions

    from ocfcluster import __version__
    from ocfcluster.wire.datagram import OLDEST_VERSION, VERSION
    from ocfcluster.wire.frames import LOCAL_PROTOCOL_VERSION

    return {
        "ocfcluster": __version__,
        "protocol": {"oldest": OLDEST_VERSION, "newest": VERSION},
        "local_protocol": LOCAL_PROTOCOL_VERSION,
        "python": sys.version,
        "system": platform.platform(),
        "packages": {one.name: one.version for one in sorted(distributions(), key=lambda one: one.name)},
    }


def _interfaces() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from ocfcluster.net.interfaces import list_interfaces

    return [asdict(interface) for interface in list_interfaces()]


def _journal(unit: str, since: str) -> bytes | str:
    """What the agent logged, or why that cannot be had."""
    journalctl = shutil.which("journalctl")
    if journalctl is None:
        return "journal: there is no journalctl here; add the agent's log by hand"
    command = [
        journalctl, "--no-pager", "--output=short-iso", f"--unit={unit}", f"--since={since}",
        f"--lines={JOURNAL_LINES}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=JOURNAL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"journal: {error}"
    if done.returncode != 0:
        return f"journal: {' '.join(done.stderr.decode('utf-8', 'replace').split())}"
    return done.stdout


def _json(document: Any) -> bytes:
    return json.dumps(document, indent=1, default=str).encode() + b"\n"
