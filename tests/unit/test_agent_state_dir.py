"""The state directory: one owner at a time, nothing half written, and nothing foreign or corrupt believed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from ocfcluster.agent import state_dir
from ocfcluster.agent.state_dir import RecordWriter, StateDirectory, is_volatile
from ocfcluster.errors import StateDirectoryError
from tests.shortage import no_room


def test_identity_and_record_survive(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "a" / "b", "blue", 3)
    assert first.record == b""
    first.write_record(b"one")
    first.write_record(b"two" * 1000)
    first.close()
    again = StateDirectory(tmp_path / "a" / "b", "blue", 3)
    assert again.store_id == first.store_id
    assert again.record == b"two" * 1000
    again.close()
    other = StateDirectory(tmp_path / "c", "blue", 3)
    assert other.store_id != first.store_id
    other.close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


def test_a_live_owner_keeps_others_out(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path, "blue", 3)
    with pytest.raises(StateDirectoryError, match=r"in use by a live agent \(process \d+\).*node.state_dir"):
        StateDirectory(tmp_path, "blue", 3)
    first.close()
    StateDirectory(tmp_path, "blue", 3).close()


@pytest.mark.parametrize(("cluster", "node_id"), [("green", 3), ("blue", 4)])
def test_another_nodes_directory_is_refused(tmp_path: Path, cluster: str, node_id: int) -> None:
    StateDirectory(tmp_path, "blue", 3).close()
    with pytest.raises(StateDirectoryError, match="belongs to node 3 of cluster 'blue'"):
        StateDirectory(tmp_path, cluster, node_id)
    StateDirectory(tmp_path, "blue", 3).close()  # the lock was given up


def test_every_truncation_and_bit_flip_of_a_record_is_found(tmp_path: Path) -> None:
    made = StateDirectory(tmp_path, "blue", 3)
    made.write_record(b"record of some length")
    made.close()
    file = tmp_path / "record"
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(StateDirectoryError, match=r"record.*(corrupt|version)"):
            StateDirectory(tmp_path, "blue", 3)
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(StateDirectoryError, match=r"record"):
            StateDirectory(tmp_path, "blue", 3)
    file.write_bytes(whole + b"x")
    with pytest.raises(StateDirectoryError):
        StateDirectory(tmp_path, "blue", 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b'{"version":1,"cluster":"blue","node_id":3,"store_id":"x"}',
        b'{"version":1,"cluster":"blue","node_id":3,"store_id":"0x_1"}',
    ],
)
def test_a_corrupt_identity_is_refused(tmp_path: Path, content: bytes) -> None:
    StateDirectory(tmp_path, "blue", 3).close()
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(StateDirectoryError, match=r"identity\.json is corrupt.*: empty the directory"):
        StateDirectory(tmp_path, "blue", 3)


def test_a_later_version_and_a_lost_identity(tmp_path: Path) -> None:
    made = StateDirectory(tmp_path, "blue", 3)
    made.write_record(b"x")
    made.close()
    identity = json.loads((tmp_path / "identity.json").read_text())
    (tmp_path / "identity.json").write_text(json.dumps({**identity, "version": 9}))
    with pytest.raises(StateDirectoryError, match="version 9"):
        StateDirectory(tmp_path, "blue", 3)
    (tmp_path / "identity.json").unlink()
    with pytest.raises(StateDirectoryError, match="has a record and no"):
        StateDirectory(tmp_path, "blue", 3)


def test_what_forgets_is_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = StateDirectory(tmp_path, "blue", 3)
    made.write_record(b"votes")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("power cut"))
    with pytest.raises(pytest.fail.Exception):
        made.forget()
    made.close()
    monkeypatch.undo()
    half = StateDirectory(tmp_path, "blue", 3)  # never the old store without its votes
    assert (half.record, half.store_id == made.store_id) == (b"votes", False)
    half.forget()
    half.close()
    whole = StateDirectory(tmp_path, "blue", 3)
    whole.close()
    assert whole.record == b""
    assert whole.store_id not in (made.store_id, half.store_id)


def test_who_has_become_unreadable_does_not_forget_half(tmp_path: Path) -> None:
    made = StateDirectory(tmp_path, "blue", 3)
    made.write_record(b"votes")
    (tmp_path / "identity.json").write_bytes(b"{")
    with pytest.raises(OSError, match="unreadable"):
        made.forget()
    assert (tmp_path / "record").exists()
    made.close()


def test_a_directory_where_everybody_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(StateDirectoryError, match=r"everybody may write there.*chmod 0700"):
        StateDirectory(tmp_path, "blue", 3)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StateDirectoryError, match=r"node\.state_dir"):
        StateDirectory(tmp_path / "file" / "state", "blue", 3)


def test_a_full_disk_says_so_at_the_start_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    with no_room(), pytest.raises(StateDirectoryError, match=r"File too large; make room on its disk"):
        StateDirectory(tmp_path, "blue", 3)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["lock"]
    StateDirectory(tmp_path, "blue", 3).close()


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = StateDirectory(tmp_path, "blue", 3)
    made.write_record(b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        made.write_record(b"new")
    made.close()
    monkeypatch.undo()
    assert not (tmp_path / "record.new").exists()
    again = StateDirectory(tmp_path, "blue", 3)
    assert again.record == b"old"
    again.close()


def test_records_are_written_in_order_and_each_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = StateDirectory(tmp_path, "blue", 3)
    told: list[tuple[int, OSError | None]] = []

    async def write() -> None:
        writer = RecordWriter(made, lambda token, error: told.append((token, error)))
        for number in range(50):
            writer.write(number, b"%d" % number, asyncio.get_running_loop())
        while len(told) < 50:  # noqa: ASYNC110 - the writer sets no event
            await asyncio.sleep(0.001)
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(0.05)
            fsync(descriptor)

        monkeypatch.setattr("os.fsync", slow)
        writer.write(50, b"last", asyncio.get_running_loop())
        writer.close()  # waits for the disk, tells nobody
        assert (tmp_path / "record").read_bytes().endswith(b"last")
        await asyncio.sleep(0.01)

    asyncio.run(write())
    made.close()
    assert told == [(number, None) for number in range(50)]
    again = StateDirectory(tmp_path, "blue", 3)
    assert again.record == b"last"
    again.close()


@pytest.mark.parametrize(
    ("kind", "volatile"), [("tmpfs", True), ("ramfs", True), ("ext4", False), ("btrfs", False)]
)
def test_a_file_system_in_memory_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, volatile: bool
) -> None:
    device = tmp_path.stat().st_dev
    lines = (
        f"21 1 0:999 / /elsewhere rw shared:1 - {'ext4' if volatile else 'tmpfs'} none rw\n"
        f"22 1 {os.major(device)}:{os.minor(device)} / / rw,relatime - {kind} /dev/x rw\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda self, *_: lines)
    assert is_volatile(tmp_path) == volatile


def test_where_it_cannot_be_told_a_file_system_counts_as_lasting(tmp_path: Path) -> None:
    assert not is_volatile(tmp_path / "nowhere")
    assert isinstance(is_volatile(tmp_path), bool)


def test_a_record_of_the_version_before_is_read_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that is upgraded finds what the older one wrote; the older one says that it cannot read the new."""
    directory = StateDirectory(tmp_path, "c", 1)
    directory.write_record(b"content")
    directory.close()
    monkeypatch.setattr(state_dir, "RECORD_VERSION", state_dir.RECORD_VERSION + 1)
    directory = StateDirectory(tmp_path, "c", 1)
    assert directory.record == b"content"
    directory.write_record(b"newer")
    directory.close()
    monkeypatch.undo()
    with pytest.raises(StateDirectoryError, match="is of version 2, this agent reads 1 to 1"):
        StateDirectory(tmp_path, "c", 1)
