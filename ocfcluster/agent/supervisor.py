"""What systemd is told (``Type=notify``): that the agent serves, that it stops, and that its loop still turns."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Final

import structlog

_MICROSECOND_S: Final = 1e-6
log = structlog.get_logger("ocfcluster.agent")


def notify_supervisor(state: str) -> None:
    """Tell systemd, where it asks to be told (``NOTIFY_SOCKET``)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
        try:
            notifying.sendto(state.encode(), address.replace("@", "\0", 1))
        except OSError as error:
            log.warning("the supervisor cannot be told", error=error.strerror)


def watchdog_interval_s() -> float:
    """Seconds between two signs of life: half of what the unit's WatchdogSec= allows. 0: nobody waits for them."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0  # meant for the process that started this one
    allowed = os.environ.get("WATCHDOG_USEC", "")
    return int(allowed) * _MICROSECOND_S / 2 if allowed.isascii() and allowed.isdigit() else 0.0


async def keep_watchdog() -> None:
    """Signs of life until cancelled, from the loop that does all the work: where that hangs they stay away, and systemd
    kills the agent and starts it again. Returns at once where nobody waits for them."""
    interval_s = watchdog_interval_s()
    while interval_s:
        notify_supervisor("WATCHDOG=1")
        await asyncio.sleep(interval_s)
