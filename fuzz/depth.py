"""How deep a target's inputs go, in a process of its own: ``python -m fuzz.depth NAME FOLDER ...``.

Prints JSON: of each file that the target reads with, the share of lines and branches that the inputs reach, and the
most memory that one of them has claimed while it was read.
"""

from __future__ import annotations

import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

import coverage

from fuzz.target import ROOT, load

CODE = ROOT.parent / "ocfcluster"


def main() -> None:
    name, *folders = sys.argv[1:]
    inputs = [path.read_bytes() for folder in folders for path in sorted(Path(folder).glob("*"))]
    print(json.dumps({"reached": reached(name, inputs), "memory_bytes": most_memory(name, inputs)}))


def reached(name: str, inputs: list[bytes]) -> dict[str, int]:
    """File of ocfcluster/ → percent."""
    measured = coverage.Coverage(data_file=None, include=[f"{CODE}/*"], branch=True, config_file=False)
    measured.start()
    target = load(
        name
    )  # the modules are imported here for the first time: their definitions count as reached
    for one in inputs:
        target.check(one)
    measured.stop()
    with tempfile.NamedTemporaryFile("r") as report:
        measured.json_report(outfile=report.name, include=[str(CODE / one) for one in target.reads])
        files = json.load(report)["files"]
    return {
        str(Path(path).resolve().relative_to(CODE)): int(found["summary"]["percent_covered"])
        for path, found in files.items()
    }


def most_memory(name: str, inputs: list[bytes]) -> int:
    target = load(name)
    tracemalloc.start()
    most = 0
    for one in inputs:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        target.check(one)
        most = max(most, tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    return most


if __name__ == "__main__":
    main()
