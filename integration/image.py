"""The image that the tests run: deploy/Dockerfile on a base made here, from wheels fetched here.

    python -m integration.image      # builds it, and prints its name

The wheels are those of the pinned requirements, for the Python of the base. Both are kept, so the second time there is
nothing to do but what has changed in the source.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from ocfcluster.agent import state_dir
from ocfcluster.wire import datagram

ROOT: Final = Path(__file__).resolve().parent.parent
WHEELS: Final = ROOT / "build" / "wheels"
NAME: Final = "ocfcluster-test"
BUILD_S: Final = 600.0


def run(*argv: str | Path) -> str:
    """Run a program at the root of the project, return what it prints; RuntimeError with its words when it fails."""
    done = subprocess.run(list(map(str, argv)), cwd=ROOT, capture_output=True, text=True, timeout=BUILD_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def base_image() -> str:
    """Make the base image unless it is there; its name."""
    return run(ROOT / "integration" / "base-image")


def fetch_wheels(base: str) -> None:
    """Put the wheels of what the image is made of into build/wheels."""
    version = run(
        "docker", "run", "--rm", base, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"
    )
    pins = [ROOT / "requirements" / name for name in ("runtime.txt", "build.txt")]
    wanted = hashlib.sha256("".join([version, *(pin.read_text() for pin in pins)]).encode()).hexdigest()
    stamp = WHEELS / ".complete"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.iterdir():
        old.unlink()
    run(
        sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--require-hashes",
        "--only-binary", ":all:", "--python-version", version, "--dest", WHEELS,
        *(argument for pin in pins for argument in ("-r", pin)),
    )  # fmt: skip
    stamp.write_text(wanted)


def build() -> str:
    """Build the image from the source as it is now; its name, which tells one checkout's from another's."""
    WHEELS.parent.mkdir(exist_ok=True)
    with (WHEELS.parent / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second finds all of it done
        return _build()


def _build() -> str:
    base = base_image()
    fetch_wheels(base)
    tag = f"{NAME}:{hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]}"
    run(
        "docker", "build", "--quiet", "--file", ROOT / "deploy" / "Dockerfile", "--tag", tag,
        "--build-arg", f"BASE_IMAGE={base}", "--build-arg", "PIP_OPTIONS=--no-index --find-links=/install", ROOT,
    )  # fmt: skip
    return tag


def build_next(tag: str) -> str:
    """``tag``'s image as the build after this one might be: it speaks a version of the protocol more, and writes a
    version of the record more. For tests of upgrades alone."""
    sources = "/opt/ocfcluster/lib/python3*/site-packages/ocfcluster"
    file = f"""FROM {tag}
USER root
RUN sed -i 's/^VERSION: Final = [0-9]*/VERSION: Final = {datagram.VERSION + 1}/' {sources}/wire/datagram.py \\
    && sed -i 's/^RECORD_VERSION: Final = [0-9]*/RECORD_VERSION: Final = {state_dir.RECORD_VERSION + 1}/' \\
        {sources}/agent/state_dir.py
USER ocfcluster
"""
    name = f"{tag}-next"
    done = subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, "-"],
        input=file,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return name


if __name__ == "__main__":
    print(build())
