"""Runs a module as ``python -m`` would, under cProfile: ``python -m bench.profiled FILE MODULE ARGUMENT...``.

It begins with SIGUSR1, so that starting up is no part of it. The statistics of the main thread are written to FILE
when the module ends.
"""

from __future__ import annotations

import cProfile
import runpy
import signal
import sys


def main() -> None:
    file, module = sys.argv[1:3]
    sys.argv = [module, *sys.argv[3:]]
    profile = cProfile.Profile()
    signal.signal(signal.SIGUSR1, lambda *_: profile.enable())
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        profile.disable()
        profile.dump_stats(file)


if __name__ == "__main__":
    main()
