"""Standard error as the log's file: one that is full, or whose reader is gone, loses lines and ends nothing."""

from __future__ import annotations

import errno
import sys


class LogFile:
    """Standard error, whatever it is at the time of a line."""

    def __init__(self) -> None:
        self.error = ""  # why the last line was not written; empty: it was
        self.lost = 0  # lines since the start

    def write(self, text: str) -> None:
        """One line, or several at once."""
        try:
            _write_all(text)
        except OSError as error:
            self.error = error.strerror or str(error)
            self.lost += 1
        else:
            self.error = ""

    def flush(self) -> None:
        """Nothing waits: ``write`` has written."""


def _write_all(text: str) -> None:
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, ValueError, OSError):  # closed at the start, or a stand-in
        print(text, end="", file=sys.stderr, flush=True)  # noqa: T201
        return
    # Past the buffer: what could not be written would stay in it, and fail again when the process ends.
    with open(descriptor, "wb", buffering=0, closefd=False) as raw:
        rest = memoryview(text.encode(errors="backslashreplace"))
        while rest:
            written = raw.write(rest)
            if written is None:  # somebody who shares it has made it non-blocking
                raise BlockingIOError(errno.EAGAIN, "its reader does not keep up")
            rest = rest[written:]


standard_error = LogFile()
