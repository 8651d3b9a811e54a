"""Runs all checks that can run on this machine: what `make test` does.

One line per stage with its time; a failing stage shows the end of its output, and all output is kept under
build/test-logs/. A failing stage does not keep the later ones from running. The exit code is 0 only if none failed.
The last line sums up the tests: `N passed, N failed, N skipped`.

The last stage, bench, measures speed, for information: it never fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test-logs"
BIN = Path(sys.executable).parent
PYTEST_PASSED, PYTEST_FAILED, PYTEST_NO_TESTS = 0, 1, 5
SHOWN_LINES = 60  # of a failing stage's output
LONG_TEST_TIMEOUT_S = 3600
BENCH = "bench"  # the stage that measures
BENCH_TIMEOUT_S = 300  # it takes less than three minutes, unless something hangs
BENCH_NOT_HERE = 3  # exit code of bench.quick: nothing to measure with or against; its last line says what

sys.path.insert(0, str(ROOT))
from tests.capabilities import CAPABILITIES, required  # noqa: E402 - the path comes first


@dataclass(frozen=True)
class Lint:
    """A command that looks at the source; 0 is good."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Tests:
    """A directory of tests. One that is not there, or holds no test, is passed over."""

    name: str
    directory: str
    workers: int = 0  # of pytest-xdist; 0 for tests that start agents or measure time: they want the machine
    covered: bool = False  # counts for the coverage of protocol/ and wire/
    needs: str = ""  # a capability of the machine


@dataclass
class Totals:
    passed: int = 0
    failed: int = 0
    skipped: int = 0


LINTS = (
    Lint("ruff check", ("ruff", "check", "--quiet", "--output-format=concise", ".")),
    Lint("ruff format", ("ruff", "format", "--check", "--quiet", ".")),
    Lint("mypy", ("mypy",)),
    Lint("import contracts", ("lint-imports", "--no-logo")),
)
TESTS = (
    Tests("unit", "tests/unit", workers=2, covered=True),
    Tests("property", "tests/property", workers=2, covered=True),
    Tests("scenarios", "tests/scenarios", workers=2, covered=True),
    Tests("conformance", "tests/conformance", workers=2),
    Tests("simulation", "tests/simulation", workers=2),  # measuring would slow the seeds threefold
    Tests("netns", "tests/netns", needs="netns"),
    Tests("integration", "integration", workers=2, needs="docker"),  # most of the time both wait
)


class Runner:
    """Carries out stages, prints a line for each, and remembers what failed."""

    def __init__(self, scratch: Path, *, long: bool, covered: bool) -> None:
        self.scratch = scratch  # coverage data of this run alone
        self.long = long
        self.covered = covered
        self.environment = os.environ | {"COVERAGE_FILE": str(scratch / "coverage")}
        self.totals = Totals()
        self.failed_stages: list[str] = []
        self.required = required()

    def lint(self, stage: Lint) -> None:
        started = self._begin(stage.name)
        code, log = self._run(stage.name, [str(BIN / stage.command[0]), *stage.command[1:]])
        self._end(stage.name, started, code == 0, "", log)

    def tests(self, stage: Tests) -> None:
        if not any((ROOT / stage.directory).rglob("test_*.py")):
            return
        started = self._begin(stage.name)
        reason = CAPABILITIES[stage.needs]() if stage.needs else None
        if reason is not None:
            if stage.needs in self.required:
                self.totals.failed += 1
                self._end(stage.name, started, False, f"{reason}, and OCFCLUSTER_REQUIRE names it")
            else:
                print(f"not run: {reason}")
            return
        report = LOGS / f"{stage.name}.xml"
        report.unlink(missing_ok=True)
        code, log = self._run(stage.name, self._pytest(stage, report))
        if code == PYTEST_NO_TESTS:
            self._end(stage.name, started, True, "no tests of this kind")
            return
        counted, reasons = _read_report(report)
        if code != PYTEST_PASSED and counted.failed == 0:
            counted.failed = 1  # pytest itself came to grief
        self.totals.passed += counted.passed
        self.totals.failed += counted.failed
        self.totals.skipped += counted.skipped
        self._end(stage.name, started, code == PYTEST_PASSED, _describe(counted), log)
        for reason, count in reasons.items():
            print(f"  {'':18}{count} skipped: {reason}")

    def coverage(self) -> None:
        """What the stages marked ``covered`` reached of protocol/ and wire/; pyproject.toml says what is enough."""
        name = "coverage"
        if not any(self.scratch.iterdir()):
            return
        started = self._begin(name)
        coverage = str(BIN / "coverage")
        code, log = self._run(name, [coverage, "combine", "--quiet"])
        if code == 0:
            code, log = self._run(name, [coverage, "report"])
        total = [line.split()[-1] for line in log.read_text().splitlines() if line.startswith("TOTAL")]
        self._end(name, started, code == 0, f"{total[0]} of protocol/ and wire/" if total else "", log)

    def bench(self) -> None:
        """Speed against another revision and the floor, for information: whatever comes of it, nothing has failed."""
        started = self._begin(BENCH)
        reason = CAPABILITIES["netns"]()
        if reason is not None:
            print(f"not run: {reason}")
            return
        # In the foreground it hears Ctrl-C, too, and takes down what it has set up, as on SIGTERM.
        limit = ["timeout", "--foreground", "--kill-after=30", str(BENCH_TIMEOUT_S)]
        log = LOGS / f"{BENCH}.log"
        with log.open("w") as output:
            done = subprocess.run(
                [*limit, sys.executable, "-m", "bench.quick"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # the tables; what it says meanwhile is in the log alone
                stderr=output,
                text=True,
            )
            output.write(done.stdout)
        if done.returncode == BENCH_NOT_HERE:
            print(f"not run: {log.read_text().splitlines()[-1].removeprefix('bench.quick: ')}")
            return
        word = "done" if done.returncode == 0 else "gave up"
        seconds = time.monotonic() - started
        print(f"{word:8}{seconds:6.1f} s   for information, more in {log.relative_to(ROOT)}", flush=True)
        for line in done.stdout.splitlines():
            print(f"      {line}")

    def finish(self) -> int:
        if self.failed_stages:
            print(f"\nfailed: {', '.join(self.failed_stages)}")
        print(f"\n{_describe(self.totals)}")
        return 1 if self.failed_stages else 0

    def _pytest(self, stage: Tests, report: Path) -> list[str]:
        if stage.covered and self.covered:
            command = [str(BIN / "coverage"), "run", "-m", "pytest"]
        else:
            command = [str(BIN / "pytest")]
        command += ["-q", "-ra", f"--junitxml={report}", stage.directory]
        if stage.workers:
            # Who is done takes from the other: minutes of chaos hold up nothing that is queued behind them.
            command += ["-n", str(stage.workers), "--dist=worksteal"]
        if self.long:
            command += ["-m", "long", f"--timeout={LONG_TEST_TIMEOUT_S}"]
        return command

    def _run(self, name: str, command: list[str]) -> tuple[int, Path]:
        """The exit code of ``command`` and the file with its output."""
        log = LOGS / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return done.returncode, log

    def _begin(self, name: str) -> float:
        print(f"  {name:18}", end="", flush=True)
        return time.monotonic()

    def _end(self, name: str, started: float, good: bool, text: str, log: Path | None = None) -> None:
        seconds = time.monotonic() - started
        print(f"{'ok' if good else 'FAILED':8}{seconds:6.1f} s   {text}".rstrip(), flush=True)
        if good:
            return
        self.failed_stages.append(name)
        if log is not None:
            lines = log.read_text(errors="replace").splitlines()
            for line in lines[-SHOWN_LINES:]:
                print(f"      {line}")
            if len(lines) > SHOWN_LINES:
                print(f"      (the last {SHOWN_LINES} of {len(lines)} lines of {log.relative_to(ROOT)})")


def _read_report(report: Path) -> tuple[Totals, Counter[str]]:
    """What a JUnit report of pytest counts, and the reasons for what was skipped."""
    totals = Totals()
    reasons: Counter[str] = Counter()
    if not report.exists():
        return totals, reasons
    for case in ET.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            totals.failed += 1
        elif skipped is None:
            totals.passed += 1
        else:
            totals.skipped += 1
            reasons[skipped.get("message", "") or "no reason given"] += 1
    return totals, reasons


def _describe(totals: Totals) -> str:
    skipped = f", {totals.skipped} skipped" if totals.skipped else ""
    return f"{totals.passed} passed, {totals.failed} failed{skipped}"


def main() -> int:
    names = ["lint", *(stage.name for stage in TESTS), BENCH]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="the tests marked `long`, and nothing else")
    parser.add_argument("--only", action="append", choices=names, help="this stage alone; may be repeated")
    arguments = parser.parse_args()
    try:
        required()
    except ValueError as error:
        parser.error(str(error))
    chosen = set(arguments.only or names)
    covered = not arguments.only and not arguments.long
    LOGS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ocfcluster-tests-") as scratch:
        runner = Runner(Path(scratch), long=arguments.long, covered=covered)
        if "lint" in chosen and not arguments.long:
            for lint in LINTS:
                runner.lint(lint)
        for tests in TESTS:
            if tests.name in chosen:
                runner.tests(tests)
        if covered:
            runner.coverage()
        if BENCH in chosen and not arguments.long:
            runner.bench()
    return runner.finish()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted")
        sys.exit(130)
