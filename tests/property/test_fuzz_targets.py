"""The targets of ``fuzz/`` without coverage guidance: the inputs that are kept for them, and others made of these."""

from __future__ import annotations

import tracemalloc
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.mutation import damage
from fuzz.target import ROOT, Target, inputs, load, names

NAMES = names()
MEMORY_BYTES = 1 << 20  # that an input of a few KiB may claim while it is read


@cache
def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in inputs(name)]


def changed(target: Target, data: bytes, random: Random) -> bytes:
    for _ in range(random.randint(1, 4)):
        data = (target.mutate if target.mutate is not None and random.random() < 0.6 else damage)(
            data, random
        )
    return data[: target.most_bytes]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_are_kept(name: str) -> None:
    target = load(name)
    for path in inputs(name):
        data = path.read_bytes()
        try:
            target.check(data)  # what it imports and makes for all inputs is not this one's
            tracemalloc.start()
            target.check(data)
            claimed = tracemalloc.get_traced_memory()[1]
        except Exception as error:
            error.add_note(f"python -m fuzz {name} --input {path}")
            raise
        finally:
            tracemalloc.stop()
        assert claimed <= MEMORY_BYTES, f"{path} of {len(data)} bytes claims {claimed}"


@pytest.mark.parametrize("name", NAMES)
def test_inputs_made_of_these(name: str) -> None:
    target = load(name)
    sources = st.one_of(st.sampled_from(corpus(name)), st.binary(max_size=200))

    @settings(max_examples=200)
    @given(source=sources, seed=st.integers(0, 2**32 - 1))
    def holds(source: bytes, seed: int) -> None:
        target.check(changed(target, source, Random(seed)))

    holds()


def test_the_document_names_every_target() -> None:
    """``python -m fuzz --json FILE --table`` prints its table."""
    text = (ROOT.parent / "docs" / "security.md").read_text()
    assert [name for name in NAMES if f"| {name} |" not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_are_those_that_the_code_makes(name: str) -> None:
    """After a change of a format: ``python -m fuzz --make-corpus``."""
    kept = [path.read_bytes() for path in sorted((ROOT / "corpus" / name).glob("seed-*"))]
    assert kept == list(load(name).seeds())
