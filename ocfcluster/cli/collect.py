"""``ocfcluster collect``: what somebody who helps wants to see of this node, as one archive."""

from __future__ import annotations

import contextlib
import errno
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
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ocfcluster.cli import options, output

DEFAULT_CONFIGURATION = Path("/etc/ocfcluster/agent.toml")
CONFIGURATION_BYTES = 1 << 20
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
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="The agent's configuration.",
            show_default=f"what the agent says, else {DEFAULT_CONFIGURATION}",
        ),
    ] = None,
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
    context: typer.Context,
    socket: str | None,
    config: Path | None,
    unit: str,
    since: str,
    missing: list[str],
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file. ``config`` None: the file that the agent was started with."""
    configuration: Path | None = config or DEFAULT_CONFIGURATION
    read: Callable[[Path], bytes] = Path.read_bytes
    yield "versions.json", _json(versions())
    path = options.socket_path(context, socket)
    try:
        with options.connect(context, path, orders=False) as client:
            status = client.status()
            if config is None:
                file = status.get("configuration", {}).get("file")
                configuration, read = Path(file) if file else None, _read_named_by_agent
            yield "status.json", _json(status)
            yield "topics.json", _json([str(topic) for topic in client.topics()])
    except OSError as error:
        missing.append(f"status: {error.strerror}")
    if configuration is None:
        missing.append("configuration: the agent was started without a file")
    else:
        try:
            yield "agent.toml", read(configuration)
        except OSError as error:
            missing.append(f"{configuration}: {error.strerror}")
    for name in SYSTEM_FILES:
        try:
            yield name[1:], Path(name).read_bytes()
        except OSError as error:
            missing.append(f"{name}: {error.strerror}")
    yield "interfaces.json", _json(_interfaces())
    journal = _journal(unit, since)
    if isinstance(journal, bytes):
        yield "journal.txt", journal
    else:
        missing.append(journal)
    if missing:
        yield "missing.txt", "\n".join([*missing, ""]).encode()


def _read_named_by_agent(file: Path) -> bytes:
    """What looks like a configuration, whatever its values. The agent is mostly another user's than who collects, and
    could name any file: nothing else goes in. Raises OSError."""
    from ocfcluster.agent.config import AgentConfig

    with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as opened:
        content = opened.read(CONFIGURATION_BYTES) or b""  # None: a pipe
    try:
        known = tomllib.loads(content.decode()).keys() <= set(AgentConfig.__struct_fields__)
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise OSError(errno.EINVAL, "does not look like a configuration; --config FILE takes it as it is")
    return content


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
