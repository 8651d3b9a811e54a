"""Runs a module as ``python -m`` would, and counts its CPU time: ``python -m bench.profiled FILE CALLS MODULE ...``.

It begins with SIGUSR1, so that starting up is no part of it, and writes JSON to FILE when the module ends. With
CALLS 0 it looks at the running function each time that the kernel's clock ticks while the process uses a processor:
that disturbs nothing, and a call into C counts for the line that made it. With CALLS 1 cProfile counts every call by
the thread's CPU time; that makes many small calls look dear.
"""

from __future__ import annotations

import cProfile
import json
import linecache
import pstats
import runpy
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType

INTERVAL_S = 0.001  # asked for; the kernel gives what its clock ticks give

Place = tuple[str, int, str]  # file, line, function


class Sampler:
    """Counts the lines, and the functions with all that they called, at each tick of CPU time."""

    def __init__(self) -> None:
        self.ticks = 0
        self.lines: Counter[Place] = Counter()
        self.functions: Counter[Place] = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, INTERVAL_S, INTERVAL_S)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        self.ticks += 1
        self.lines[(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name)] += 1
        within = set()
        while frame is not None:
            within.add((frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_code.co_name))
            frame = frame.f_back
        self.functions.update(within)

    def stop(self) -> dict[str, object]:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {
            "ticks": self.ticks,
            "lines": [
                [count, *place, linecache.getline(*place[:2]).strip() if Path(place[0]).is_file() else ""]
                for place, count in self.lines.most_common()
            ],
            "functions": [[count, *place] for place, count in self.functions.most_common()],
        }


class Calls:
    """cProfile by the CPU time of the main thread: by the wall clock a send would pay for those that it wakes."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile(time.thread_time)

    def start(self) -> None:
        self._profile.enable()

    def stop(self) -> dict[str, object]:
        self._profile.disable()
        found = pstats.Stats(self._profile).stats  # type: ignore[attr-defined]
        return {
            "calls": sorted(
                ([own, calls, *place] for place, (_, calls, own, _, _) in found.items()), reverse=True
            )
        }


def main() -> None:
    file, calls, module = sys.argv[1:4]
    sys.argv = [module, *sys.argv[4:]]
    profile = Calls() if calls == "1" else Sampler()
    signal.signal(signal.SIGUSR1, lambda *_: profile.start())
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        Path(file).write_text(json.dumps(profile.stop()), "utf-8")


if __name__ == "__main__":
    main()
