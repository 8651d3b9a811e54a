"""docs/guide.md does what it shows; and what runs it sees when it does not."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.cluster import ROOT
from tests.guide import Block, Command, Reader, commands, matches, sections

GUIDE = ROOT / "docs" / "guide.md"
NEEDS_ROOT = {"Permissions"}  # becomes another user


@pytest.mark.timeout(300)
def test_every_snippet_of_the_guide() -> None:
    root = os.geteuid() == 0 and shutil.which("setpriv") is not None
    with Reader() as reader:
        for heading, blocks in sections(GUIDE):
            if heading in NEEDS_ROOT and not root:
                continue
            for block in blocks:
                reader.run(block)
    if not root:
        pytest.skip(f"needs root and setpriv, to become another user: {', '.join(NEEDS_ROOT)}")


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ([], [], True), ([], ["x"], False), (["x"], [], False), (["a b"], ["a b"], True), (["a.b"], ["acb"], False),
        (["id …"], ["id 16"], True), (["id … x"], ["id 16"], False), (["…"], [], True), (["…"], ["a", "b"], True),
        (["…", "b", "…"], ["a", "b", "c"], True), (["…", "d", "…"], ["a", "b", "c"], False),
        (["a", "…"], ["b"], False),
    ],
)  # fmt: skip
def test_what_is_printed_is_compared(expected: list[str], printed: list[str], same: bool) -> None:
    assert matches(expected, printed) is same


def test_commands_are_read() -> None:
    block = Block(10, "console", "$ one\na\n\n$ two\n", "")
    assert commands(block) == [Command(11, "one", ["a", ""]), Command(14, "two", [])]
    with pytest.raises(ValueError, match="line 11"):
        commands(Block(10, "console", "a\n", ""))


def test_what_differs_is_found() -> None:
    with Reader() as reader:
        reader.run(Block(1, "text", "content\n", "file.txt"))
        reader.run(Block(2, "console", "$ cat file.txt\ncontent\n$ x=5\n$ echo $x; false\n5\n", ""))
        reader.run(Block(3, "python", "print('anything')\n", ""))
        for block in (
            Block(4, "console", "$ echo other\nthis\n", ""), Block(5, "console", "$ echo more\n", ""),
            Block(6, "python", "raise SystemExit(3)\n", ""), Block(7, "console", "$ exit 1\n", ""),
        ):  # fmt: skip
            with pytest.raises(AssertionError):
                reader.run(block)
        with pytest.raises(ValueError, match="line 8"):
            reader.run(Block(8, "rust", "", ""))
