"""What systemd is told (``Type=notify``): that the agent serves, that it stops, and that its loop still turns."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

import structlog

_MICROSECOND_S: Final = 1e-6
WATCHDOG: Final = "WATCHDOG=1"
_UNTOLD_S: Final = 5.0  # what could not be told is told again, where nobody waits for signs of life
log = structlog.get_logger("ocfcluster.agent")


class Supervisor:
    """systemd, where it asks to be told (``NOTIFY_SOCKET``).

    The socket is opened at once and kept: an agent that has run out of descriptors goes on, and has to say so. It
    does not wait for a supervisor that hangs: what that has no room for is not told.
    """

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = address if address.startswith("/") else ""
        if address.startswith("@"):
            self._address = "\0" + address[1:]
        self._socket: socket.socket | None = None
        self._untold = ""  # the last that it had no room for, and that is to be told all the same
        if self._address:
            with contextlib.suppress(OSError):  # whoever tells something tries again, and says why
                self._socket = _open()

    def tell(self, state: str) -> None:
        """What changes a state, and cannot be told, is told with the next sign of life, unless another follows."""
        if not self._address:
            return
        self._untold = "" if state != WATCHDOG else self._untold
        try:
            if self._socket is None:
                self._socket = _open()
            self._socket.sendto(state.encode(), self._address)
        except OSError as error:
            log.warning("the supervisor cannot be told", error=error.strerror or str(error))
            if state != WATCHDOG:
                self._untold = state

    def live(self, watched: bool) -> None:
        """A sign of life, where it is waited for, and what could not be told before."""
        if self._untold:
            self.tell(self._untold)
        if watched:
            self.tell(WATCHDOG)

    @property
    def listens(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def close(self) -> None:
        """Nothing is told from here on."""
        self._address = ""
        if self._socket is not None:
            self._socket.close()


def _open() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


def watchdog_interval_s() -> float:
    """Seconds between two signs of life: half of what the unit's WatchdogSec= allows. 0: nobody waits for them."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0  # meant for the process that started this one
    allowed = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed) * _MICROSECOND_S / 2 if allowed.isascii() and allowed.isdigit() else 0.0


async def keep_watchdog(supervisor: Supervisor) -> None:
    """Signs of life until cancelled, from the loop that does all the work: where that hangs they stay away, and systemd
    kills the agent and starts it again. Returns at once where nobody is to be told anything."""
    interval_s = watchdog_interval_s()
    while supervisor.listens:
        supervisor.live(interval_s > 0)
        await asyncio.sleep(interval_s or _UNTOLD_S)
