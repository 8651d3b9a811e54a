"""``ocfcluster publish``: what interrupts it, and standard streams that are closed."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ocfcluster.cli import main
from ocfcluster.cli.publish import _events, _publish_with_receipts, parse_properties


class NeverDelivered:
    """A client whose publications are not answered before ``end``."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def publish(self, *_: object, **__: object) -> NeverDelivered:
        return self

    def wait(self) -> None:
        self.end.wait()
        raise OSError("never delivered")


@pytest.mark.timeout(10)
def test_ctrl_c_does_not_wait_for_receipts() -> None:
    def events() -> Iterator[bytes]:
        yield b"one"
        raise KeyboardInterrupt

    client = NeverDelivered()
    with pytest.raises(KeyboardInterrupt):
        _publish_with_receipts(client, "orders", events(), 0, {})
    client.end.set()


@pytest.mark.parametrize("pair", ["", "=", "=value", "key"])
def test_what_is_no_property_is_refused(pair: str) -> None:
    with pytest.raises(Exception, match="is not KEY=VALUE"):
        parse_properties([pair])


def test_properties_may_hold_equal_signs_and_nothing() -> None:
    assert parse_properties(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


def test_a_property_given_twice_is_refused() -> None:
    with pytest.raises(Exception, match="'a' is given twice"):
        parse_properties(["a=1", "a=2"])


@pytest.mark.parametrize(("re_id", "code"), [(-1, 2), (2**64, 2), (2**64 - 1, 4)])
def test_re_id_is_an_unsigned_number_of_64_bits(re_id: int, code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["publish", "orders", "--data", "x", f"--re-id={re_id}", "--socket", "/nowhere"])
    assert ended.value.code == code


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_no_bug(closed: int) -> None:
    command = [sys.executable, "-m", "ocfcluster", "publish", "orders", "--socket", "/nowhere"]
    code = f"import os; os.close({closed}); os.execv({sys.executable!r}, {command!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 4
    assert "internal error" not in done.stderr


@pytest.mark.parametrize("lines", [False, True])
def test_no_more_is_read_than_an_event_may_have_and_one_byte(lines: bool) -> None:
    source = io.BytesIO(bytes(1000))
    assert len(next(_events(None, source, None, 64, lines=lines))) == 65
    assert source.tell() == 65


def test_a_line_of_the_largest_size_is_one_event() -> None:
    source = io.BytesIO(b"x" * 64 + b"\n\nlast")
    assert list(_events(None, source, None, 64, lines=True)) == [b"x" * 64, b"", b"last"]
