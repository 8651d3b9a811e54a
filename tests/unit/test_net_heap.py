from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, platform, resource, sys
from ocfcluster.net.heap import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def burst():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [os.urandom(60_000) for _ in range(128)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
burst()
print(int(kept), sum(burst() for _ in range(5)), platform.libc_ver()[0])
"""


def page_faults(mode: str) -> tuple[bool, int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True, timeout=60
    )
    kept, faults, *libc = done.stdout.split()
    return kept == "1", int(faults), libc[0] if libc else ""


def test_bursts_of_buffers_find_their_memory_again() -> None:
    kept, faults, libc = page_faults("keep")
    assert kept == (libc == "glibc")
    if kept:
        _, faults_before, _ = page_faults("leave")
        assert faults_before > 2000  # 5 bursts of 128 buffers of 15 pages each
        assert faults < 500
