"""A kernel filter that keeps a node's own datagrams from waking it up.

Where multicast is looped back (several agents on one machine), every datagram also comes back to its sender. A classic
BPF program on the receiving socket drops those by bytes that no other node sends. A buffer that is still whole on
loopback is judged by its first datagram: all of a buffer have one sender.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

_SO_ATTACH_FILTER: Final = 26
_INSTRUCTION = struct.Struct("@HBBI")  # code, jump if true, jump if false, operand
_PROGRAM = struct.Struct("@HP")  # instructions, their address

_LOAD_LENGTH: Final = 0x80
_LOAD: Final = {4: 0x20, 2: 0x28, 1: 0x30}  # bytes at an absolute offset, big-endian
_JUMP_IF_EQUAL: Final = 0x15
_JUMP_IF_GREATER_OR_EQUAL: Final = 0x35
_RETURN: Final = 0x06
_WHOLE: Final = 0xFFFF_FFFF

_UDP_HEADER_BYTES: Final = 8  # a UDP socket's filter sees the datagram from its UDP header on
_EXPECTED_BYTES_MAXIMUM: Final = 64  # keeps jumps within their 8 bits


def own_filter_program(offset: int, expected: bytes) -> list[tuple[int, int, int, int]]:
    """Instructions that drop datagrams whose payload has ``expected`` at ``offset`` and pass all others.

    ValueError: nothing to compare, or more than 64 bytes.
    """
    if not 0 < len(expected) <= _EXPECTED_BYTES_MAXIMUM or offset < 0:
        raise ValueError(f"cannot compare {len(expected)} bytes at offset {offset}")
    comparisons = []
    position = 0
    while position < len(expected):
        left = len(expected) - position
        size = 4 if left >= 4 else 2 if left >= 2 else 1
        operand = int.from_bytes(expected[position : position + size], "big")
        comparisons.append((size, _UDP_HEADER_BYTES + offset + position, operand))
        position += size
    # A load beyond the end would drop the datagram, so the length is asked first.
    least_bytes = _UDP_HEADER_BYTES + offset + len(expected)
    program = [(_LOAD_LENGTH, 0, 0, 0), (_JUMP_IF_GREATER_OR_EQUAL, 0, 2 * len(comparisons) + 1, least_bytes)]
    for number, (size, at, operand) in enumerate(comparisons):
        to_pass = 2 * (len(comparisons) - number - 1) + 1
        program += [(_LOAD[size], 0, 0, at), (_JUMP_IF_EQUAL, 0, to_pass, operand)]
    return [*program, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _WHOLE)]


def attach_own_filter(opened: socket.socket, offset: int, expected: bytes) -> bool:
    """Put the filter on a UDP socket; False where the kernel refuses."""
    program = own_filter_program(offset, expected)
    instructions = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*step) for step in program))
    packed = _PROGRAM.pack(len(program), ctypes.addressof(instructions))
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, packed)
    except OSError:
        return False
    return True
