"""The documents: their links lead somewhere, and their examples are Python, TOML and JSON."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document: Path, language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(document.read_text()) if name == language]


def prose(document: Path) -> str:
    """The document without its code, where brackets are no links and # begins no heading."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", document.read_text()))


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    text = BLOCK.sub("", document.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


def test_there_are_documents() -> None:
    assert {"README.md", "api.md", "cli.md", "formats.md"} <= {document.name for document in DOCUMENTS}


@each_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    broken = []
    for target in LINK.findall(prose(document)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@each_document
def test_code_is_what_it_says(document: Path) -> None:
    for text in blocks(document, "python"):
        compile(text, str(document), "exec")
    for text in blocks(document, "toml"):
        tomllib.loads(text)
    for text in blocks(document, "json"):
        json.loads(text)


def test_the_index_names_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [one.name for one in ROOT.glob("docs/*.md") if f"({one.name})" not in index] == ["README.md"]
