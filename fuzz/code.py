"""The code that a target runs, in a process of its own: ``python -m fuzz.code NAME`` prints a digest of it.

It is of the files of the product and of the targets in which the kept inputs of the target run something: its figures
say something about these, and nothing about others.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import coverage

from fuzz.target import ROOT, inputs, load

PROJECT = ROOT.parent


def main() -> None:
    digest = hashlib.sha256()
    for path in run_by(sys.argv[1]):
        digest.update(str(path.relative_to(PROJECT)).encode() + b"\0" + path.read_bytes())
    print(digest.hexdigest()[:16])


def run_by(name: str) -> list[Path]:
    """Source files, in order. What is only imported is none of them."""
    target = load(name)
    measured = coverage.Coverage(
        data_file=None, include=[f"{PROJECT}/ocfcluster/*", f"{ROOT}/targets/*"], config_file=False
    )
    measured.start()
    for one in inputs(name):
        target.check(one.read_bytes())
    measured.stop()
    data = measured.get_data()
    return sorted(Path(path) for path in data.measured_files() if data.lines(path))


if __name__ == "__main__":
    main()
