"""The wheel and the source distribution: built twice in unlike surroundings they must be the same, byte for byte.

Each build has a copy of the project's files of its own, in another directory, with other file times and modes, made in
another order, under another umask, time zone, locale and hash seed. What time the archives tell is the commit's.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = "ocfcluster"
EXECUTABLE: Final = 0o100
SHOWN: Final = 10  # files that a message names
BUILD_S: Final = 120.0


class ReleaseError(Exception):
    """What is there may not be released; the text says why."""


@dataclass(frozen=True)
class Surroundings:
    """What a build must not depend on."""

    directory: str
    umask: int
    backwards: bool  # the files are made in this order
    file_time: int
    environment: Mapping[str, str]


PLAIN: Final = Surroundings(
    "a", 0o022, False, 1_000_000_000, {"TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "1"}
)
ODD: Final = Surroundings(
    "another/and longer", 0o077, True, 1_500_000_001,
    {"TZ": "Pacific/Apia", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "2"},
)  # fmt: skip


@dataclass(frozen=True)
class Artifacts:
    """What one build has made."""

    wheel: Path
    sdist: Path

    @property
    def version(self) -> str:
        return self.wheel.name.split("-")[1]

    def digests(self) -> dict[str, str]:
        return {path.name: digest(path) for path in (self.wheel, self.sdist)}


def digest(path: Path) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(argv: Sequence[str | Path], timeout_s: float, **options: Any) -> str:
    """Run a program and return what it prints; ReleaseError with its last words where it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=timeout_s, **options
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReleaseError(f"{' '.join(words)}: {error}") from error
    if done.returncode != 0:
        raise ReleaseError(
            f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return str(done.stdout)


# --- what goes in -----------------------------------------------------------------------------------------------------


def git(*words: str, tree: Path = ROOT) -> str:
    return run(["git", "-C", tree, *words], 60.0)


def project_files(tree: Path = ROOT) -> list[str]:
    """The paths of all files that git knows or would add, sorted."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", tree=tree).split("\0")
    return sorted(path for path in set(listed) if path and (tree / path).is_file())


def commit_time(tree: Path = ROOT) -> int:
    """When HEAD was committed, in seconds."""
    return int(git("log", "-1", "--format=%ct", tree=tree))


def copy(files: Iterable[str], to: Path, around: Surroundings, tree: Path = ROOT) -> None:
    """Make the project's files anew under ``to``."""
    for path in sorted(files, reverse=around.backwards):
        made = to / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes((tree / path).read_bytes())
        mode = 0o777 if (tree / path).stat().st_mode & EXECUTABLE else 0o666
        made.chmod(mode & ~around.umask)
        os.utime(made, (around.file_time, around.file_time))


# --- what comes out ---------------------------------------------------------------------------------------------------


def build(source: Path, into: Path, epoch: int, around: Surroundings, *targets: str) -> None:
    """Let the build backend make ``targets`` ("wheel", "sdist") of the files in ``source``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HATCH", "PYTHON"))}
    environment |= {"SOURCE_DATE_EPOCH": str(epoch), **around.environment}
    into = into.resolve()
    wanted = [word for target in targets for word in ("--target", target)]
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--directory", into, *wanted]
    run(command, BUILD_S, cwd=source, env=environment, umask=around.umask)


def build_both(
    files: Sequence[str], scratch: Path, epoch: int, around: Surroundings, tree: Path = ROOT
) -> Artifacts:
    """The wheel and the source distribution of ``files``, made in ``scratch``."""
    source, made = scratch / around.directory / "source", scratch / around.directory / "made"
    copy(files, source, around, tree)
    build(source, made, epoch, around, "sdist", "wheel")
    return found(made)


def found(directory: Path) -> Artifacts:
    wheels, sdists = sorted(directory.glob("*.whl")), sorted(directory.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1):
        raise ReleaseError(f"not one wheel and one source distribution: {wheels + sdists}")
    return Artifacts(wheels[0], sdists[0])


def build_twice(files: Sequence[str], scratch: Path, epoch: int, tree: Path = ROOT) -> Artifacts:
    """The first of two builds, which are the same."""
    first = build_both(files, scratch, epoch, PLAIN, tree)
    second = build_both(files, scratch, epoch, ODD, tree)
    for one, other in ((first.wheel, second.wheel), (first.sdist, second.sdist)):
        if digest(one) != digest(other):
            raise ReleaseError(f"two builds of {one.name} are not the same:\n{difference(one, other)}")
    return first


def wheel_again(sdist: Path, scratch: Path, epoch: int) -> Path:
    """The wheel that the source distribution makes."""
    made = scratch / "from-sdist"
    build(unpack(sdist, scratch / "unpacked"), made, epoch, ODD, "wheel")
    return next(made.glob("*.whl"))


def unpack(sdist: Path, into: Path) -> Path:
    """Its one directory."""
    into.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    return next(into.iterdir())


# --- what is inside ---------------------------------------------------------------------------------------------------


def members(path: Path) -> dict[str, tuple[object, ...]]:
    """By name, what an archive says of each of its files, and the file's digest."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {
                one.filename: (one.date_time, oct(one.external_attr >> 16), _sha(archive.read(one)))
                for one in archive.infolist()
            }
    told: dict[str, tuple[object, ...]] = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            content = _sha(file.read()) if file is not None else "no file"
            told[member.name] = (member.mtime, oct(member.mode), member.uname, member.gname, content)
    return told


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def difference(one: Path, other: Path) -> str:
    """In which files two archives differ, in words."""
    left, right = members(one), members(other)
    lines = [
        f"  {name}: {left.get(name, 'not there')} and {right.get(name, 'not there')}"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name)
    ]
    if not lines:
        return "  the same files, in another order or packed otherwise"
    return "\n".join([*lines[:SHOWN], *([f"  and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])])


def check_wheel(wheel: Path, files: Iterable[str]) -> None:
    """All files of the package, and besides them nothing but the wheel's own; ReleaseError else."""
    information = "-".join(wheel.name.split("-")[:2]) + ".dist-info/"
    inside = {name for name in members(wheel) if not name.startswith(information)}
    _same(wheel, inside, {path for path in files if path.startswith(f"{PACKAGE}/")})


def check_sdist(sdist: Path, files: Iterable[str]) -> None:
    """All files of the project, tests and all, and besides them its metadata alone; ReleaseError else."""
    top = sdist.name.removesuffix(".tar.gz") + "/"
    inside = {name.removeprefix(top) for name in members(sdist)} - {"PKG-INFO"}
    _same(sdist, inside, set(files))


def _same(path: Path, inside: set[str], wanted: set[str]) -> None:
    for what, names in (("lacks", wanted - inside), ("holds besides", inside - wanted)):
        if names:
            raise ReleaseError(f"{path.name} {what} {', '.join(sorted(names)[:SHOWN])}")
