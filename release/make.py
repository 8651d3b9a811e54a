"""Makes a release of HEAD in dist/: what `make release` does.

    python -m release.make                 # in an environment of requirements/release.txt
    python -m release.make --directory /tmp/dist

The wheel and the source distribution are built twice, and must be the same; the source distribution makes the same
wheel. The wheel, and not the tree, is then tested in an environment of its own. dist/ gets both, a bill of materials
and SHA256SUMS. Exit codes: 0: it is made. 1: it is not; dist/ is written last. 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from release import artifacts, audit, supply
from release.artifacts import PACKAGE, ROOT, Artifacts, ReleaseError, run

TRY_S: Final = 300.0
# What users meet first, and what needs all parts. `make test` has run all of them on the tree.
TESTS: Final = (
    "tests/unit/test_cli_demo.py",
    "tests/unit/test_cli_output.py",
    "tests/unit/test_cli_publish.py",
    "tests/unit/test_cli_subscribe.py",
    "tests/unit/test_client_examples.py",
    "tests/unit/test_embedded.py",
    "tests/unit/test_ocf.py",
    "tests/conformance/test_obligations.py",
)
COMMANDS: Final = (("demo",), ("sim", "--seeds", "3"), ("limits",))
WHERE: Final = f"import {PACKAGE}, sys; print({PACKAGE}.__file__); print({PACKAGE}.__version__)"


@contextmanager
def step(text: str) -> Iterator[None]:
    """A line that says what is done, and then how long it took."""
    print(f"release: {text:74}", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print("FAILED", flush=True)
        raise
    print(f"{time.monotonic() - began:6.1f} s", flush=True)


def check_tree(version: str = "", tree: Path = ROOT) -> None:
    """What is released is a commit: nothing may differ from it. A tag on it names this version."""
    if changed := artifacts.git("status", "--porcelain", tree=tree):
        raise ReleaseError(f"what is released is a commit, and the tree differs from HEAD:\n{changed}")
    tags = [
        tag for tag in artifacts.git("tag", "--points-at", "HEAD", tree=tree).split() if tag.startswith("v")
    ]
    if version and tags and f"v{version}" not in tags:
        raise ReleaseError(f"HEAD has the tag {', '.join(tags)}, and this is version {version}")


def outside() -> dict[str, str]:
    """An environment in which nothing leads back to the tree."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def check_place(python: Path, version: str, directory: Path) -> None:
    """What is imported in ``directory`` is the installed wheel, of this version."""
    place, said = run([python, "-c", WHERE], TRY_S, cwd=directory, env=outside()).split()
    if "site-packages" not in Path(place).parts or not Path(place).is_relative_to(python.parent.parent):
        raise ReleaseError(f"not the installed wheel is tested but {place}")
    if said != version:
        raise ReleaseError(f"{place} says that it is version {said}, not {version}")


def try_commands(python: Path, directory: Path) -> None:
    for words in COMMANDS:
        run([python.parent / PACKAGE, *words], TRY_S, cwd=directory, env=outside())


def try_tests(python: Path, made: Artifacts, scratch: Path) -> str:
    """Run TESTS of the source distribution, whose package is taken away, on the wheel; what pytest says in the end."""
    tree = artifacts.unpack(made.sdist, scratch / "tests")
    shutil.rmtree(tree / PACKAGE)
    supply.install(python, "--require-hashes", "-r", tree / "requirements" / "dev.txt")
    check_place(python, made.version, tree)
    said = run([python, "-m", "pytest", "-q", "-n", "2", *TESTS], TRY_S, cwd=tree, env=outside())
    return said.strip().splitlines()[-1]


def write(made: Artifacts, bom: str, directory: Path) -> list[Path]:
    """Put all of it in ``directory``, in the place of what was there of this project."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in [*directory.glob(f"{PACKAGE}-*"), directory / "SHA256SUMS"]:
        old.unlink(missing_ok=True)
    files = [Path(shutil.copy(one, directory)) for one in (made.wheel, made.sdist)]
    bill = directory / f"{PACKAGE}-{made.version}.cdx.json"
    bill.write_text(bom, "utf-8")
    files.append(bill)
    sums = directory / "SHA256SUMS"
    sums.write_text("".join(f"{artifacts.digest(one)}  {one.name}\n" for one in sorted(files)), "utf-8")
    for one in (*files, sums):
        one.chmod(0o644)
    return [*files, sums]


def make(directory: Path, scratch: Path) -> list[Path]:
    """All of it; what was written. ReleaseError where something is wrong."""
    check_tree()
    files, epoch = artifacts.project_files(), artifacts.commit_time()
    with step("wheel and source distribution, twice: the same"):
        made = artifacts.build_twice(files, scratch, epoch)
        check_tree(made.version)
    with step("the source distribution makes the same wheel; both hold what they should"):
        if artifacts.digest(artifacts.wheel_again(made.sdist, scratch, epoch)) != artifacts.digest(
            made.wheel
        ):
            raise ReleaseError("the source distribution makes another wheel than the tree")
        artifacts.check_wheel(made.wheel, files)
        artifacts.check_sdist(made.sdist, files)
    with step("an environment of requirements/runtime.txt, by hash, and the wheel"):
        python = supply.make_environment(scratch / "venv", supply.RUNTIME, made.wheel)
        check_place(python, made.version, scratch)
    with step("bill of materials"):
        bom = supply.bill_of_materials(python, supply.RUNTIME, made.version, epoch)
    audit.look_from_here(python, bom)
    with step(f"the wheel works: {', '.join(' '.join(words) for words in COMMANDS)}"):
        try_commands(python, scratch)
    with step("tests on the wheel"):
        said = try_tests(python, made, scratch)
    print(f"  {said}")
    return write(made, json.dumps(bom, indent=1, sort_keys=True) + "\n", directory)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.make", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--directory", type=Path, default=ROOT / "dist", help="where it is put (dist)")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="ocfcluster-release-") as scratch:
            written = make(options.directory.resolve(), Path(scratch))
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    print("".join(f"{artifacts.digest(path)}  {path.name}\n" for path in written), end="")
    print(f"release: {options.directory} is ready; known vulnerabilities were not looked up: make audit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
