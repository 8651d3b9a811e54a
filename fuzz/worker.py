"""One target under libFuzzer, by atheris, in a process of its own: ``python -m fuzz.worker NAME -runs=N ... FOLDER``.

The product and the target are imported instrumented, so this module imports neither at its top.
"""

from __future__ import annotations

import resource
import sys
from random import Random
from typing import Final

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

INSTRUMENTED: Final = ["ocfcluster", "tomllib"]
MEMORY_BYTES: Final = (
    1 << 30
)  # of address space beyond what a process begins with: more is a MemoryError, a finding


def main() -> None:
    name, *flags = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from fuzz.target import load

        target = load(name)

    def mutator(data: bytes, most_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        if target.mutate is None or random.random() < 0.5:
            changed: bytes = atheris.Mutate(data, most_bytes)
            return changed
        return target.mutate(data, random)[:most_bytes]

    again = f"{sys.executable} -m fuzz.worker {name}"  # as libFuzzer starts this program where it merges
    atheris.Setup([again, f"-max_len={target.most_bytes}", *flags], target.check, custom_mutator=mutator)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115 - once
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
