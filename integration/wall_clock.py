"""Runs the command line with a wall clock that is wrong: for agents in containers, which share their machine's.

    OCFCLUSTER_WALL_CLOCK=FILE python wall_clock.py agent --config …

FILE holds the number of seconds by which the clock is ahead; who writes another one makes the clock jump. All that the
agent does with the time of day it asks ``time.time`` and ``time.time_ns`` for, which tell the wrong one here. What
stays right is the monotonic clock, as on a machine whose time is set, and the timestamps of the log.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

NS: Final = 1_000_000_000


def shifted(file: Path, real_ns: Callable[[], int]) -> Callable[[], int]:
    """A clock like ``real_ns``, as far ahead of it as ``file`` says now."""
    # Read in one system call from a file that keeps its place: an agent asks for the time with each of its timers.
    descriptor = os.open(file, os.O_RDONLY)

    def time_ns() -> int:
        return real_ns() + round(float(os.pread(descriptor, 64, 0)) * NS)

    return time_ns


def main() -> None:
    clock = shifted(Path(os.environ["OCFCLUSTER_WALL_CLOCK"]), time.time_ns)
    time.time_ns = clock
    time.time = lambda: clock() / NS
    from ocfcluster.cli import (
        main as ocfcluster,
    )  # behind the change: whoever imports the functions gets these

    sys.argv[0] = "ocfcluster"
    ocfcluster()


if __name__ == "__main__":
    main()
