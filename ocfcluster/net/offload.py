"""UDP segmentation and receive offload (Linux: UDP_SEGMENT since 4.18, UDP_GRO since 5.0).

The ``socket`` module has no names for them. With UDP_SEGMENT one ``sendmsg`` hands the kernel up to 64 datagrams;
with UDP_GRO one ``recvmsg`` gives them back together and says in a control message how long each is.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

_SEGMENT = struct.Struct("@H")
_GRO = struct.Struct("@i")

# Room for the one control message that a receiving socket here can get: the GRO segment size.
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_GRO.size)

Ancillary = tuple[int, int, bytes]


def can_segment(udp_socket: socket.socket) -> bool:
    """Whether this kernel knows UDP_SEGMENT; whether a device can do it shows at the first send."""
    try:
        udp_socket.getsockopt(socket.IPPROTO_UDP, UDP_SEGMENT)
    except OSError:
        return False
    return True


def enable_gro(udp_socket: socket.socket) -> bool:
    """Ask for received datagrams to stay together; whether the kernel does it."""
    try:
        udp_socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    except OSError:
        return False
    return True


def segment_ancillary(segment: int) -> list[Ancillary]:
    """The control messages of a ``sendmsg`` that is cut into datagrams of ``segment`` bytes (1 to 65 535)."""
    return [(socket.IPPROTO_UDP, UDP_SEGMENT, _SEGMENT.pack(segment))]


def received_segment(ancillary: list[Ancillary], length: int) -> int:
    """The segment size that came with a received buffer of ``length`` bytes: ``length`` where none came."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_UDP and kind == UDP_GRO and len(data) >= _GRO.size:
            segment: int = _GRO.unpack_from(data)[0]
            if 0 < segment < length:
                return segment
    return length
