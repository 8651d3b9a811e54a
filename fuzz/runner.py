"""Runs targets, several at a time, until each has had its executions; what has been done is kept and added to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from fuzz.target import ROOT, load

PROJECT: Final = ROOT.parent
WORK: Final = (
    PROJECT / "build" / "fuzz"
)  # inputs that libFuzzer has found to reach something new, and crashes
SLICE_RUNS: Final = 200_000  # of one process: what an interrupted run loses at most
INPUT_TIMEOUT_S: Final = 10  # one input that takes longer is a finding
SLICE_TIMEOUT_S: Final = 3600
CORPUS_INPUT_BYTES: Final = 700  # of an addition to the corpus
_DONE: Final = re.compile(r"^#\d+\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_UNITS: Final = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_CRASH: Final = re.compile(r"Test unit written to (\S+)")


def code_digest(name: str) -> str:
    """Of all that the figures of a target are about (``fuzz.code``)."""
    command = [sys.executable, "-m", "fuzz.code", name]
    return subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout.strip()


class Figures:
    """What has been run of this code, kept in ``file`` (None: not at all). Figures of other code are dropped, target by
    target."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._code: dict[str, str] = {}  # as it is now, of the targets that were asked for
        self.document: dict[str, Any] = {"targets": {}}
        if file is not None and file.exists():
            self.document = json.loads(file.read_text())

    def of(self, name: str) -> dict[str, Any]:
        with self._lock:
            if name not in self._code:
                self._code[name] = code_digest(name)
            found: dict[str, Any] = self.document["targets"].get(name, {})
            if found.get("code") != self._code[name]:
                found = {
                    "executions": 0,
                    "seconds": 0.0,
                    "edges": 0,
                    "features": 0,
                    "inputs": 0,
                    "crashes": [],
                }
                found["code"] = self._code[name]
                self.document["targets"][name] = found
            return found

    def current(self) -> dict[str, dict[str, Any]]:
        """Figures of the code as it is, by target."""
        every = {name: self.of(name) for name in sorted(self.document["targets"])}
        return {name: found for name, found in every.items() if found["executions"]}

    def add(self, name: str, **changes: Any) -> None:
        with self._lock:
            self.of(name).update(changes)
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._file.with_name(self._file.name + ".new")
                temporary.write_text(json.dumps(self.document, indent=1, sort_keys=True) + "\n")
                temporary.replace(self._file)


def run(names: list[str], runs: int, jobs: int, figures: Figures) -> bool:
    """``runs`` executions of each target, those of ``figures`` included. False where one has failed."""
    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(lambda name: run_target(name, runs, figures), names)))


def run_target(name: str, runs: int, figures: Figures) -> bool:
    (WORK / name).mkdir(parents=True, exist_ok=True)
    while (done := figures.of(name)["executions"]) < runs:
        if not run_slice(name, min(SLICE_RUNS, runs - done), figures):
            return False
    command = [sys.executable, "-m", "fuzz.depth", name, *map(str, folders(name))]
    depth = json.loads(
        subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    )
    figures.add(name, **depth)
    print(line(name, figures.of(name)), flush=True)
    return True


def folders(name: str) -> list[Path]:
    """Those with inputs of a target."""
    every = (WORK / name, ROOT / "corpus" / name, ROOT / "found" / name)
    return [folder for folder in every if folder.is_dir()]


def run_slice(name: str, runs: int, figures: Figures) -> bool:
    """One process. False where it has found something, or fails."""
    command = [
        sys.executable, "-m", "fuzz.worker", name, f"-runs={runs}", f"-timeout={INPUT_TIMEOUT_S}",
        "-print_final_stats=1", f"-artifact_prefix={WORK / 'crashes' / name}-", *map(str, folders(name)),
    ]  # fmt: skip
    (WORK / "crashes").mkdir(exist_ok=True)
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=PROJECT,
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SLICE_TIMEOUT_S,
    )
    output = done.stdout + done.stderr
    reached, units = _DONE.search(output), _UNITS.search(output)
    if done.returncode or reached is None or units is None:
        crash = _CRASH.search(output)
        if crash is not None:
            figures.add(name, crashes=[*figures.of(name)["crashes"], Path(crash[1]).name])
        print(f"{name}: failed\n{explanation(output)}", file=sys.stderr, flush=True)
        return False
    before = figures.of(name)
    edges, features, inputs = map(int, reached.groups())
    figures.add(
        name, executions=before["executions"] + int(units[1]), edges=edges, features=features, inputs=inputs,
        seconds=round(before["seconds"] + time.monotonic() - began, 1),
    )  # fmt: skip
    return True


def explanation(output: str) -> str:
    """What of a failed process's output says why: from the exception on."""
    begin = output.find("=== Uncaught Python exception")
    return output[begin:][:6000] if begin >= 0 else output[-3000:]


def line(name: str, found: dict[str, Any]) -> str:
    """One target's figures as text."""
    speed = found["executions"] / found["seconds"] if found["seconds"] else 0
    reached = ", ".join(f"{file} {percent} %" for file, percent in found.get("reached", {}).items())
    return (
        f"{name:16} {found['executions']:>9} executions, {speed:>6.0f}/s, {found['edges']:>4} edges, "
        f"{found['inputs']:>4} inputs, at most {found.get('memory_bytes', 0) // 1024} KiB, {reached}"
    )


def table(figures: Figures) -> str:
    """The figures as docs/security.md has them."""
    rows = [
        "| target | executions | a second | edges | reached of the parser's files | memory, KiB |",
        "|---|--:|--:|--:|---|--:|",
    ]
    current = figures.current()
    for name, found in current.items():
        reached = ", ".join(f"{file} {percent} %" for file, percent in found.get("reached", {}).items())
        speed = found["executions"] / found["seconds"] if found["seconds"] else 0
        counts = " | ".join(map(grouped, (found["executions"], round(speed), found["edges"])))
        rows.append(f"| {name} | {counts} | {reached} | {found.get('memory_bytes', 0) // 1024} |")
    total = sum(found["executions"] for found in current.values())
    return "\n".join([*rows, f"| all | {grouped(total)} | | | | |"])


def grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def make_corpus(names: list[str]) -> None:
    """Write the seeds of ``names`` to the corpus, as seed-00, seed-01, ...; what else is there stays."""
    for name in names:
        folder = ROOT / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for number, seed in enumerate(load(name).seeds()):
            (folder / f"seed-{number:02}").write_bytes(seed)


def add_to_corpus(names: list[str], most: int, most_bytes: int) -> None:
    """Add up to ``most`` of the inputs found, none above ``most_bytes``, that reach more than the seeds: small ones
    first, by their content's hash."""
    for name in names:
        corpus, merged = ROOT / "corpus" / name, WORK / "merged" / name
        shutil.rmtree(merged, ignore_errors=True)
        merged.mkdir(parents=True)
        for seed in corpus.glob("seed-*"):
            shutil.copy(seed, merged)
        known = {path.name for path in merged.iterdir()}
        command = [sys.executable, "-m", "fuzz.worker", name, "-merge=1", str(merged), str(WORK / name)]
        subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
        for old in corpus.glob("more-*"):
            old.unlink()
        more = sorted(
            (path for path in merged.iterdir() if path.name not in known),
            key=lambda path: path.stat().st_size,
        )
        for path in [one for one in more if one.stat().st_size <= most_bytes][:most]:
            shutil.copy(path, corpus / f"more-{path.name[:12]}")
