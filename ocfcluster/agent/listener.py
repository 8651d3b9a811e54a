"""The listening Unix socket of the agent."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from ocfcluster.errors import SetupError

PATH_BYTES: Final = 107  # of sockaddr_un.sun_path, with the NUL it is 108
_BACKLOG: Final = 128


class Listener:
    """A listening socket at ``path``; removed from there by ``close``. Raises SetupError."""

    def __init__(self, path: str, mode: int = 0o660) -> None:
        self.path = path
        if len(os.fsencode(path)) > PATH_BYTES:
            raise SetupError(
                f"socket path {path} has {len(os.fsencode(path))} bytes, Unix sockets take {PATH_BYTES}: "
                "choose a shorter node.socket"
            )
        self._make_directory(Path(path).parent)
        self._clear(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            mask = os.umask(0o177)
            try:
                self.socket.bind(path)
            finally:
                os.umask(mask)
            Path(path).chmod(mode)
            self.socket.listen(_BACKLOG)
            found = Path(path).stat()
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # see refuse
        except OSError as error:
            self.socket.close()
            raise SetupError(
                f"socket {path}: {error.strerror}; choose another node.socket, or mend that directory"
            ) from None
        self._inode = (found.st_dev, found.st_ino)

    @staticmethod
    def _make_directory(directory: Path) -> None:
        """The default system directory is open to all users, the others (in /tmp, say) to their owner alone."""
        mode = 0o755 if directory.parent == Path("/run") else 0o700
        try:
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(
                f"socket directory {directory}: {error.strerror}; make it, or choose another node.socket"
            ) from None
        owner = directory.stat().st_uid
        if owner not in (0, os.geteuid()) and directory.parent.stat().st_mode & stat.S_IWOTH:
            raise SetupError(
                f"socket directory {directory} belongs to user {owner}, who could replace the socket: "
                "choose another node.socket"
            )

    @staticmethod
    def _clear(path: str) -> None:
        """Remove a dead agent's socket. A live one's, or what is no socket, stays: SetupError."""
        try:
            found = Path(path).lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise SetupError(f"{path} is there and no socket: move it away, or choose another node.socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            code = probe.connect_ex(path)
        if code not in (errno.ECONNREFUSED, errno.ENOENT):
            raise SetupError(
                f"socket {path} is in use by a live agent: stop that one, or choose another node.socket"
            )
        try:
            Path(path).unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(
                f"socket {path} of an agent that is gone cannot be removed: {error.strerror}"
            ) from None

    def refuse(self, frame: bytes) -> bool:
        """Where no descriptor is left: take one connection with the one that is kept for that, say ``frame`` and end
        it, so that its program need not wait. False where none has come."""
        self._give_spare()
        try:
            connected, _ = self.socket.accept()
        except OSError:
            return False
        else:
            with connected, contextlib.suppress(OSError):
                connected.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            return True
        finally:
            self._keep_spare()

    def _keep_spare(self) -> None:
        with contextlib.suppress(OSError):  # others were quicker: the next time, then
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_spare(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def close(self) -> None:
        """Stop listening, and remove the path if it is still this socket's."""
        self.socket.close()
        self._give_spare()
        try:
            found = Path(self.path).lstat()
            if (found.st_dev, found.st_ino) == self._inode:
                Path(self.path).unlink()
        except OSError:
            pass  # somebody else removed it
