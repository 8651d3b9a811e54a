"""The log's file: what cannot be written is lost and counted, and holds nothing up."""

from __future__ import annotations

import os
import sys

import pytest

from ocfcluster.agent.logfile import LogFile


@pytest.mark.timeout(20)
def test_a_reader_that_does_not_keep_up_holds_nothing_up_where_somebody_made_the_pipe_non_blocking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    log = LogFile()
    with os.fdopen(writing, "w") as stream, os.fdopen(reading, "rb") as reader:
        monkeypatch.setattr(sys, "stderr", stream)
        for _ in range(3000):
            log.write("a line of the log " * 10 + "\n")
        assert log.lost > 0
        assert log.error
        os.set_blocking(reader.fileno(), False)
        while reader.read(1 << 20):
            pass
        log.write("and another\n")
        assert log.error == ""
        assert reader.read(1 << 20) == b"and another\n"
