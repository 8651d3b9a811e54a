"""Runs what a document shows: its files, programs and commands, one after the other, as a reader would.

In the document

- a block behind a line that ends with a name and a colon (```1.toml``:``) is the content of that file;
- another ``python`` block is a program, which must end with 0;
- a ``console`` block holds commands, each behind ``$ ``, and what they print, standard error included. ``…`` stands
  for anything within a line, a line of it alone for any lines. A command that only looks (``LOOKS``) is tried again
  until it prints that, for as long as a reader would look.

Everything happens in one shell, in a directory of its own, so that variables and background processes stay.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from tests.cluster import ROOT, end_with_parent, free_port

BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED: Final = re.compile(r"`([\w-]+\.\w+)`:\s*$")
LOOKS: Final = (
    "cat ",
    "ocfcluster members",
    "ocfcluster status",
    "ocfcluster topic show",
    "ocfcluster topic list",
)
PATIENCE_S: Final = 30.0
PROGRAM_S: Final = 60.0
JOB_ENDED: Final = re.compile(
    r"bash: line \d+: +\d+ (Killed|Terminated) "
)  # said at some later command or other
ANYTHING: Final = "…"


class Block(NamedTuple):
    """One block of code; ``line`` is where it begins in its document, ``file`` the name it is given there."""

    line: int
    language: str
    text: str
    file: str


class Command(NamedTuple):
    """A command of a ``console`` block and the lines it prints."""

    line: int
    text: str
    expected: list[str]


def blocks(document: Path) -> list[Block]:
    """All blocks of code of a document, in their order."""
    text = document.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        named = NAMED.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(line, match[1], match[2], named[1] if named else ""))
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a ``console`` block."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append(Command(number, line[2:], []))
        elif found:
            found[-1].expected.append(line.rstrip())
        else:
            raise ValueError(f"line {number}: output without a command before it")
    return found


def matches(expected: list[str], printed: list[str]) -> bool:
    """Whether ``printed`` is what the document shows."""
    if not expected:
        return not printed
    if expected[0] == ANYTHING:
        return any(matches(expected[1:], printed[at:]) for at in range(len(printed) + 1))
    pattern = ".*".join(map(re.escape, expected[0].split(ANYTHING)))
    return bool(printed) and bool(re.fullmatch(pattern, printed[0])) and matches(expected[1:], printed[1:])


class Reader:
    """A shell in a directory of its own; a context manager that ends all that was started in it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="ocf-guide-"))
        self.directory.chmod(0o711)
        tools = self.directory / "tools"
        tools.mkdir()
        python = sys.executable
        _tool(tools / "ocfcluster", f'exec {python} -m ocfcluster "$@"')
        _tool(tools / "python", f'exec {python} "$@"')
        # The capability lets another user's process read this Python wherever it is; who it is stays as it is.
        can_read = "--inh-caps +dac_read_search --ambient-caps +dac_read_search"
        _tool(tools / "sudo", f'id=$(id -u "$2"); shift 2\nexec setpriv --reuid "$id" --regid "$id" --clear-groups {can_read} "$@"')  # fmt: skip  # noqa: E501
        environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        # Other users' processes could not write down what they covered.
        for name in [one for one in environment if one.startswith("COVERAGE_")] + ["OCFCLUSTER_SOCKET"]:
            environment.pop(name, None)
        # Safe beside threads: what is called before the exec is one system call.
        self._shell = subprocess.Popen(
            ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=self.directory, env=environment, start_new_session=True, preexec_fn=end_with_parent,  # noqa: PLW1509
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._shell.pid, number)
            except ProcessLookupError:
                break
            time.sleep(0.5)
        self._shell.wait()
        for pipe in (self._shell.stdin, self._shell.stdout):
            if pipe is not None:
                pipe.close()
        if kind is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            print(f"what the guide left is kept in {self.directory}")
            for log in sorted(self.directory.glob("*.log")):
                print(f"--- {log}", *log.read_text("utf-8", "replace").splitlines()[-10:], sep="\n")

    def write(self, block: Block) -> None:
        """A file, on a port that is free instead of the one that is shown."""
        text = re.sub(r"^port = \d+$", f"port = {free_port()}", block.text, flags=re.MULTILINE)
        (self.directory / block.file).write_text(text, "utf-8")

    def say(self, command: str) -> tuple[int, list[str]]:
        """Have the shell carry out ``command``: its exit status and what was printed."""
        mark = secrets.token_hex(8)
        stdin, stdout = self._shell.stdin, self._shell.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{{ {command}\n}} < /dev/null\nended=$?; echo; echo {mark} $ended\n")
        stdin.flush()
        printed: list[str] = []
        for line in stdout:
            if line.startswith(mark):
                printed = "\n".join(printed).rstrip("\n").split("\n") if any(printed) else []
                return int(line.split()[1]), printed
            if not JOB_ENDED.match(line):
                printed.append(line.rstrip())
        raise AssertionError(f"the shell ended in: {command}\n" + "\n".join(printed))

    def carry_out(self, command: Command) -> None:
        """One command of a block; AssertionError where it prints something else than is shown."""
        deadline = time.monotonic() + (PATIENCE_S if command.text.startswith(LOOKS) else 0)
        expected = "\n".join(command.expected).rstrip("\n").split("\n") if any(command.expected) else []
        while True:
            _, printed = self.say(
                f"timeout {PROGRAM_S} {command.text}" if _is_plain(command.text) else command.text
            )
            if matches(expected, printed):
                return
            if time.monotonic() >= deadline:
                shown, seen = "\n".join(expected), "\n".join(printed)
                raise AssertionError(
                    f"line {command.line}: $ {command.text}\nshown:\n{shown}\nprinted:\n{seen}"
                )
            time.sleep(0.2)

    def run(self, block: Block) -> None:
        """Do what a block says."""
        if block.file:
            self.write(block)
        elif block.language == "python":
            name = f"block-{block.line}.py"
            (self.directory / name).write_text(block.text, "utf-8")
            status, printed = self.say(f"timeout {PROGRAM_S} python {name}")
            assert status == 0, f"line {block.line}: the program ended with {status}\n" + "\n".join(printed)
        elif block.language == "console":
            for command in commands(block):
                self.carry_out(command)
        else:
            raise ValueError(
                f"line {block.line}: a block of {block.language!r} is not run; name a file before it"
            )


def _is_plain(command: str) -> bool:
    """Whether it is one program, which ``timeout`` can start."""
    return command.startswith("ocfcluster ") and not command.endswith("&") and "echo $!" not in command


def _tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)


def sections(document: Path) -> Iterator[tuple[str, list[Block]]]:
    """The blocks under each heading of second order."""
    text = document.read_text("utf-8")
    headings = [
        (text.count("\n", 0, match.start()) + 1, match[1])
        for match in re.finditer(r"^## (.+)$", text, re.MULTILINE)
    ]
    found = blocks(document)
    for (start, heading), (end, _) in zip(headings, [*headings[1:], (1 << 30, "")], strict=True):
        yield heading, [block for block in found if start < block.line < end]
