"""Did a change of a hot path cost something? This checkout over another revision, and over the floor in C, in one run.

    python -m bench.quick                                     # against the newest tag before HEAD
    python -m bench.quick --against HEAD~3 --rounds 8 --json quick.json

Without a tag it is the last commit that this checkout differs from in ``ocfcluster/``. Takes less than three minutes,
unless ``--rounds`` asks for more. Needs root. docs/performance.md says what is measured.

The exit code is 1 where measuring failed, 2 where the arguments are wrong, 3 where nothing can be measured here (not
root, no git history); slower is no failure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.compare.comparing import FAILURES, Comparing
from bench.compare.install import InstallError
from bench.compare.peers.floor import Floor
from bench.compare.peers.ocf import Ocfcluster
from bench.compare.report import show
from bench.compare.work import OURS, WORKS, Latency, Work
from tests.cluster import ROOT

CODE: Final = "ocfcluster"  # what is compared: the folder of the product
ROUNDS: Final = 5
LIMIT_S: Final = 165.0  # the rest of three minutes is for taking down
SECONDS: Final = 1.0  # of one measurement of a rate
# By work: events that take ENOUGH_S of bench.compare.measure on two cores, so that one attempt finds how many to take.
PROBES: Final = {"64B": 1_200_000, "1KiB": 90_000, "16KiB": 7_000, "3x64B": 1_200_000}


class NotHere(Exception):
    """Nothing can be measured in this checkout; the text says why."""


class NoRevision(Exception):
    """There is no revision of the name that was given."""


@dataclass(frozen=True)
class Revision:
    """What is measured against: its ``name`` in tables, and ``why`` that one."""

    name: str
    commit: str
    why: str


def main() -> int:
    arguments = _parse()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if os.geteuid() != 0:
            raise NotHere("network namespaces need root: run this with sudo")
        revision = chosen(ROOT, arguments.against)
        document = measure(revision, arguments.rounds, console)
    except NoRevision as error:
        console.print(f"bench.quick: {error}", markup=False)
        return 2
    except NotHere as error:
        console.print(f"bench.quick: {error}", markup=False)
        return 3
    except (InstallError, *FAILURES) as error:
        console.print(f"bench.quick: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("bench.quick: interrupted")
        return 130
    show(document, promises=False)
    print(f"{revision.name} is {revision.why}. Took {document['seconds']:.0f} s.")
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return 0 if document["spreads"].get(revision.name) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.quick", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", metavar="REV", help="another revision than the newest tag before HEAD")
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"default: {ROUNDS}, or as many as there is time for",
    )
    parser.add_argument(
        "--json",
        type=_new_file,
        metavar="FILE",
        help="write ratios, all measurements and the environment there",
    )
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number from 1 on, not {text!r}")
    return int(text)


def _new_file(text: str) -> Path:
    """Looked at before three minutes are spent."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


# --- the other revision -------------------------------------------------------------------------------------------


def chosen(root: Path, against: str | None = None) -> Revision:
    """The revision that the checkout at ``root`` is measured against. Raises NotHere or NoRevision."""
    if _git(root, "rev-parse", "--show-prefix"):
        raise NotHere("there is no git history of this project here")
    if against is not None:
        try:
            commit = _git(root, "rev-parse", "--verify", "--end-of-options", f"{against}^{{commit}}")
        except NotHere:
            raise NoRevision(f"there is no revision {against} here") from None
        return _revision(root, commit, "what --against says")
    tags = _git(root, "tag", "--merged", "HEAD", "--no-contains", "HEAD", "--sort=-creatordate").split()
    if tags:
        return _revision(root, f"{tags[0]}^{{commit}}", "the newest tag before HEAD")
    # In the first of these the code is as in HEAD, in the second as it was before that.
    commits = _git(root, "rev-list", "--max-count=2", "HEAD", "--", CODE).split()
    if not _git(root, "status", "--porcelain", "--", CODE):
        commits = commits[1:]
    if not commits:
        raise NotHere(
            "there is no earlier revision here: no tag, and not enough commits (is the clone shallow?)"
        )
    return _revision(
        root, commits[0], f"the last commit with another {CODE}/ than here (there is no earlier tag)"
    )


def _revision(root: Path, name: str, why: str) -> Revision:
    described = _git(root, "describe", "--tags", "--always", name)
    return Revision(described, _git(root, "rev-parse", name), why)


def unpack(root: Path, revision: Revision, directory: Path) -> None:
    """Put the code of ``revision`` into ``directory``; the repository is only read. Raises NotHere."""
    archive = _run(["git", "-C", str(root), "archive", "--format=tar", revision.commit, CODE])
    _run(["tar", "-x", "-C", str(directory)], archive)


def _git(root: Path, *arguments: str) -> str:
    return _run(["git", "-C", str(root), *arguments]).decode().strip()


def _run(argv: list[str], given: bytes = b"") -> bytes:
    """What a tool prints. Raises NotHere with its first words (a line) when it fails."""
    try:
        done = subprocess.run(argv, input=given, capture_output=True, check=False)
    except FileNotFoundError:
        raise NotHere(f"there is no {argv[0]} here (apt-get install {argv[0]})") from None
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        raise NotHere(f"{argv[0]} failed: {words or shlex.join(argv)}")
    return done.stdout


# --- measuring ----------------------------------------------------------------------------------------------------


def works() -> list[Work]:
    """Those of bench.compare that are measured."""
    return [
        one if isinstance(one, Latency) else replace(one, probe=PROBES[one.name])
        for one in WORKS
        if isinstance(one, Latency) or one.name in PROBES
    ]


def measure(revision: Revision, rounds: int | None, console: Console) -> dict[str, Any]:
    """The document as bench.compare makes it, with what it was ``against`` and how many ``seconds`` it took.

    Raises NotHere, or what ``Comparing.run`` raises.
    """
    began = time.monotonic()
    here = _git(ROOT, "describe", "--tags", "--always", "--dirty")
    console.print(f"this checkout ({here}) against {revision.name}, {revision.why}", markup=False)
    floor = Floor()
    skipped = {floor.name: ", ".join(floor.missing())} if floor.missing() else {}
    for name, missing in skipped.items():
        console.print(f"{name} is skipped, missing: {missing}", markup=False)
    with tempfile.TemporaryDirectory(prefix="ocf-bench-") as directory:
        unpack(ROOT, revision, Path(directory))
        systems = [
            Ocfcluster(OURS, f"this checkout ({here})"),
            Ocfcluster(revision.name, revision.name, Path(directory)),
            *([] if skipped else [floor]),
        ]
        document = Comparing(
            systems,
            works(),
            console,
            rounds=rounds or ROUNDS,
            seconds=SECONDS,
            command=shlex.join(["python", "-m", "bench.quick", *sys.argv[1:]]),
            limit_s=math.inf if rounds else LIMIT_S,
        ).run()
    document["skipped"] |= skipped
    document["against"] = {"name": revision.name, "commit": revision.commit, "why": revision.why}
    document["seconds"] = round(time.monotonic() - began, 1)
    return document


if __name__ == "__main__":
    sys.exit(main())
