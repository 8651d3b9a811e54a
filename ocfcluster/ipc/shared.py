"""Runs that are too large for a message of an event socket: one sealed memfd, shared by all subscribers of the node."""

from __future__ import annotations

import fcntl
import os
from typing import Final

_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealed_copy(run: bytes) -> int:
    """A descriptor of a memfd that holds ``run`` and can be changed by nobody any more, not even by the agent.

    All who get it share its file offset, so they read it with pread or mmap. The caller closes it. Raises OSError
    (no memory, no descriptors).
    """
    descriptor = os.memfd_create("ocfcluster-run", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(run)
        at = 0
        while at < len(view):
            at += os.write(descriptor, view[at:])
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
