"""The state directory: who this node is, and the record that the node keeps on disk.

``StateDirectory`` reads and writes it, ``RecordWriter`` writes beside the event loop.

Files: ``lock`` (held exclusively for the agent's life: two processes must never speak as one node), ``identity.json``
(written once), ``record`` (replaced atomically; magic, version, length, xxh3-64 of the body, body), ``programs.key``
(random, written once: by it the agent knows its programs again).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import secrets
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
from xxhash import xxh3_64_intdigest

from ocfcluster.errors import StateDirectoryError, StateDirectoryUnavailable

RECORD_HEADER: Final = struct.Struct("<8sIIQ")  # magic, version, body length, checksum of the body
MAGIC: Final = b"OCFRECRD"
RECORD_VERSION: Final = 1
RECORD_OLDEST_VERSION: Final = 1  # read, and written anew in this build's version
IDENTITY_VERSION: Final = 1
_LOCK: Final = "lock"
_IDENTITY: Final = "identity.json"
_RECORD: Final = "record"
_PROGRAMS: Final = "programs.key"
_SECRET_BYTES: Final = 32
_STORE_ID: Final = re.compile("[0-9a-f]{16}")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose directory this is. ``store_id`` is random and made with it: a wiped directory is another one."""

    version: int
    cluster: str
    node_id: int
    store_id: str  # 16 hex digits


class StateDirectory:
    """A state directory, locked by this process.

    Raises StateDirectoryError from the constructor: locked by a live agent, corrupt, of another node or cluster;
    StateDirectoryUnavailable where it cannot be read or written. The message says what to do.
    """

    def __init__(self, path: Path, cluster: str, node_id: int) -> None:
        self.path = path
        self.record = b""  # as found at the start
        self._lock = -1
        try:
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):  # where it may be made and not be read
                    _sync_directory(path.parent)
            if path.stat().st_mode & 0o002:
                raise StateDirectoryError(
                    f"state directory {path}: everybody may write there, and make up what this node has promised; "
                    "chmod 0700, or name another as node.state_dir"
                )
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirectoryUnavailable(
                f"state directory {path}: {error.strerror}; make it writable for this user, "
                "or name another as node.state_dir"
            ) from None
        try:
            self._take_lock()
            self.store_id = self._identity(cluster, node_id)
            self.record = self._read_record()
            self.secret, self.secret_is_new = self._read_secret()
        except OSError as error:
            self.close()
            raise StateDirectoryUnavailable(
                f"state directory {path}: {error.strerror}; make room on its disk, look whether that is well, or name "
                "another directory as node.state_dir"
            ) from None
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StateDirectoryError(
                f"state directory {self.path} is in use by a live agent (process {holder}); stop that one, "
                "or give this node a directory of its own as node.state_dir"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _identity(self, cluster: str, node_id: int) -> int:
        file = self.path / _IDENTITY
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            if (self.path / _RECORD).exists():
                raise StateDirectoryError(
                    f"state directory {self.path} has a record and no {_IDENTITY}: empty "
                    "the directory, with which the node begins as a stranger"
                ) from None
            identity = Identity(IDENTITY_VERSION, cluster, node_id, f"{secrets.randbits(64):016x}")
            _replace(file, msgspec.json.encode(identity) + b"\n")
            return int(identity.store_id, 16)
        try:
            identity = msgspec.json.decode(raw, type=Identity)
            if _STORE_ID.fullmatch(identity.store_id) is None:
                raise ValueError("its store_id is not 16 hex digits")
            store_id = int(identity.store_id, 16)
        except (msgspec.DecodeError, ValueError) as error:
            raise StateDirectoryError(
                f"{file} is corrupt ({error}): empty the directory, with which the node begins as a stranger"
            ) from None
        if identity.version != IDENTITY_VERSION:
            raise StateDirectoryError(
                f"{file} is of version {identity.version}, this agent writes {IDENTITY_VERSION}: "
                "run the agent that made it"
            )
        if (identity.cluster, identity.node_id) != (cluster, node_id):
            raise StateDirectoryError(
                f"state directory {self.path} belongs to node {identity.node_id} of cluster {identity.cluster!r}, "
                f"and this is node {node_id} of {cluster!r}: correct node.id or cluster.name, "
                "or name another directory as node.state_dir"
            )
        return store_id

    def _read_record(self) -> bytes:
        file = self.path / _RECORD
        try:
            raw = file.read_bytes()
        except FileNotFoundError:
            return b""
        fault = ""
        if len(raw) < RECORD_HEADER.size:
            fault = f"has {len(raw)} bytes"
        else:
            magic, version, length, checksum = RECORD_HEADER.unpack_from(raw)
            body = raw[RECORD_HEADER.size :]
            if magic != MAGIC:
                fault = "is no record of an agent"
            elif not RECORD_OLDEST_VERSION <= version <= RECORD_VERSION:
                raise StateDirectoryError(
                    f"{file} is of version {version}, this agent reads {RECORD_OLDEST_VERSION} to {RECORD_VERSION}: "
                    "run the agent that made it"
                )
            elif len(body) != length or xxh3_64_intdigest(body) != checksum:
                fault = "does not match its length and checksum"
            else:
                return body
        raise StateDirectoryError(
            f"{file} is corrupt (it {fault}): look for a failing disk; then empty {self.path}, with which the node "
            "begins as a stranger and is brought up to date by the others"
        )

    def _read_secret(self) -> tuple[bytes, bool]:
        """And whether it was made just now. Never told, and no vote hangs on it: one that was lost or damaged is made
        anew."""
        file = self.path / _PROGRAMS
        try:
            secret = file.read_bytes()
        except FileNotFoundError:
            secret = b""
        if len(secret) == _SECRET_BYTES:
            return secret, False
        secret = secrets.token_bytes(_SECRET_BYTES)
        _replace(file, secret)
        return secret, True

    def write_record(self, body: bytes) -> None:
        """Replace the record durably. Blocks for the disk: not for the event loop's thread. Raises OSError."""
        header = RECORD_HEADER.pack(MAGIC, RECORD_VERSION, len(body), xxh3_64_intdigest(body))
        _replace(self.path / _RECORD, header + body)

    def forget(self) -> None:
        """Empty the directory, durably: who opens it next is a stranger. Blocks for the disk. Raises OSError.

        The new identity comes first: where the power fails between, a record of another store has no vote.
        """
        try:
            raw = msgspec.json.decode((self.path / _IDENTITY).read_bytes(), type=Identity)
        except msgspec.DecodeError as error:
            raise OSError(errno.EIO, f"{_IDENTITY} has become unreadable: {error}") from None
        identity = Identity(IDENTITY_VERSION, raw.cluster, raw.node_id, f"{secrets.randbits(64):016x}")
        _replace(self.path / _IDENTITY, msgspec.json.encode(identity) + b"\n")
        (self.path / _RECORD).unlink(missing_ok=True)
        _sync_directory(self.path)

    def close(self) -> None:
        """Give up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class RecordWriter:
    """Writes records in a thread of its own, in the order given, because fsync waits. Used from the loop's thread."""

    def __init__(self, directory: StateDirectory, tell: Callable[[int, OSError | None], None]) -> None:
        """``tell(token, error)`` is called in the loop when a record is on disk, or is not."""
        self._directory = directory
        self._tell = tell
        self._thread = ThreadPoolExecutor(1, "ocfcluster-disk")

    def write(self, token: int, record: bytes, loop: asyncio.AbstractEventLoop) -> None:
        def done(future: Future[None]) -> None:
            try:
                loop.call_soon_threadsafe(self._written, token, future)
            except RuntimeError:
                pass  # the loop has ended meanwhile; nobody waits for the answer

        self._thread.submit(self._directory.write_record, record).add_done_callback(done)

    def _written(self, token: int, future: Future[None]) -> None:
        try:
            future.result()
        except OSError as error:
            self._tell(token, error)
        else:
            self._tell(token, None)

    def close(self) -> None:
        """Waits until everything given is written; nobody is told any more."""
        self._tell = _nobody
        self._thread.shutdown(wait=True)


def _nobody(token: int, error: OSError | None) -> None:
    """Whom a closed RecordWriter tells."""


def is_volatile(path: Path) -> bool:
    """Whether what is under ``path`` is gone when the machine restarts (tmpfs). False where that cannot be told."""
    try:
        device = path.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[2] == wanted:
            return kind.split()[0] in ("tmpfs", "ramfs")
    return False


def _replace(file: Path, content: bytes) -> None:
    """``file`` has the new content or the old one, whenever the power fails; the new one once this has returned."""
    temporary = file.with_name(file.name + ".new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk it takes room
        raise
    _sync_directory(file.parent)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
