"""Where the peers come from: Debian packages and wheels, unpacked below ``build/bench``; the system stays as it is.

Packages are downloaded and unpacked, not installed: no service of theirs is ever started, and ``make clean`` removes
them. What the system has already is used where nothing is unpacked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "bench"
REQUIREMENTS: Final = ROOT / "requirements" / "peers.txt"
VENV: Final = BUILD / "python"
CLIENTS: Final = Path(__file__).with_name("clients")
GCC: Final = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
TIMEOUT_S: Final = 600.0


class InstallError(Exception):
    """A peer could not be installed or built; the text says why, and what to do."""


def run(argv: Sequence[str], **environment: str) -> str:
    """Run a tool to its end; what it printed. Raises InstallError with its words when it fails."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, **environment},
        )
    except FileNotFoundError:
        raise InstallError(f"there is no {argv[0]} here") from None
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(argv)} did not end in {TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise InstallError(f"{' '.join(argv)} failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


# --- Debian packages ----------------------------------------------------------------------------------------------


class Tree:
    """The files of some Debian packages: unpacked in a folder of their own, or the system's."""

    def __init__(self, name: str) -> None:
        self.root: Final = BUILD / name

    def unpack(self, packages: Iterable[str]) -> None:
        """Download the packages, with all that they need and the system lacks, and unpack them. Raises InstallError."""
        archives = BUILD / f"{self.root.name}.deb"
        shutil.rmtree(archives, ignore_errors=True)
        (archives / "partial").mkdir(parents=True)
        run(["apt-get", "update", "-qq"])
        run(
            ["apt-get", "install", "--yes", "--no-install-recommends", "--reinstall", "--download-only",
             "-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root", *packages],
            DEBIAN_FRONTEND="noninteractive",
        )  # fmt: skip
        shutil.rmtree(self.root, ignore_errors=True)
        for archive in sorted(archives.glob("*.deb")):
            run(["dpkg-deb", "--extract", str(archive), str(self.root)])
        shutil.rmtree(archives)

    def find(self, path: str) -> Path | None:
        """A file by its path from the root, with wildcards; the one unpacked goes over the system's."""
        for root in (self.root, Path("/")):
            for found in sorted(root.glob(path)):
                return found
        return None

    @property
    def libraries(self) -> str:
        """For LD_LIBRARY_PATH, which the system's libraries come behind."""
        return os.pathsep.join(str(path) for path in sorted(self.root.glob("usr/lib/*-linux-gnu")) + sorted(
            self.root.glob("lib/*-linux-gnu")))  # fmt: skip


# --- wheels -------------------------------------------------------------------------------------------------------


def make_venv() -> None:
    """The virtual environment of the peers that are Python packages, pinned by hash. Raises InstallError."""
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    run([str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
         "--only-binary", ":all:", "--require-hashes", "-r", str(REQUIREMENTS)])  # fmt: skip


# --- our own clients ----------------------------------------------------------------------------------------------


def compile_c(name: str, *libraries: str, tree: Tree | None = None, generated: Sequence[Path] = ()) -> Path:
    """Compile a client with gcc, unless that is done already; the program. Raises InstallError.

    ``generated`` are sources beside it; their headers are found.
    """
    source, program = CLIENTS / f"{name}.c", BUILD / f"{name}-client"
    if _newer(program, source, CLIENTS / "client.h"):
        return program
    headers, folders = [f"-I{one.parent}" for one in generated], []
    if tree is not None and tree.root.exists():
        headers += [f"-I{tree.root}/usr/include"]
        headers += [f"-I{folder}" for folder in tree.root.glob("usr/include/*-linux-gnu")]
        for folder in tree.libraries.split(os.pathsep):
            folders += [f"-L{folder}", f"-Wl,-rpath-link,{folder}"]
    BUILD.mkdir(parents=True, exist_ok=True)
    named = [f"-l{library}" for library in libraries]
    run([*GCC, *headers, "-o", str(program), *map(str, [source, *generated]), *folders, *named, "-lpthread"])
    return program


def compile_java(name: str, classpath: Path) -> Path:
    """Compile a client with javac, unless that is done already; the folder of its classes. Raises InstallError."""
    source, classes = CLIENTS / f"{name}.java", BUILD / "classes"
    if not _newer(classes / f"{name}.class", source):
        classes.mkdir(parents=True, exist_ok=True)
        run(["javac", "-Xlint:all", "-cp", str(classpath), "-d", str(classes), str(source)])
    return classes


def _newer(made: Path, *sources: Path) -> bool:
    return made.exists() and all(made.stat().st_mtime > source.stat().st_mtime for source in sources)
