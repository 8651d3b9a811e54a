"""A sealed TCP connection as an agent that gives snapshots has it: greeting, pieces, a request.

The input is a script of what the other end sends: bytes as they are, or pieces sealed with the connection's key.
"""

from __future__ import annotations

import socket
from collections.abc import Coroutine, Iterator
from typing import Any, Final, TypeVar

from fuzz.target import Script, Target, well_formed
from fuzz.targets.sealed import CLUSTER, OTHER, OWN
from ocfcluster import limits
from ocfcluster.agent.channel import Channel, Sealing
from ocfcluster.agent.snapshots import REQUEST_LENGTH
from ocfcluster.errors import Malformed
from ocfcluster.protocol.snapshot import Request, decode_request, encode_request
from ocfcluster.wire import sealed_stream
from ocfcluster.wire.sealed_stream import GREETING, LENGTH, SealedStream

_SEALING: Final = Sealing(CLUSTER, [OTHER, OWN])
_NONCE: Final = bytes(sealed_stream.NONCE_BYTES)
Result = TypeVar("Result")


class Peer:
    """The other end, as far as a channel sees it of a socket. Ops of the script: even: that many bytes as they are;
    odd: that many bytes sealed."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._buffer = b""
        self._stream: SealedStream | None = None
        self._first = sealed_stream.greeting(CLUSTER, OWN, _NONCE)
        self.sealed = b""  # all that was sealed
        if script.number() & 1:
            self._buffer = self._first

    def recv(self, size: int) -> bytes:
        while not self._buffer and self._script:
            op = self._script.number()
            piece = self._script.piece(op >> 1)
            if op & 1 and self._stream is not None and piece:
                self._buffer = self._stream.seal(piece)
                self.sealed += piece
            else:
                self._buffer = piece
        piece, self._buffer = self._buffer[:size], self._buffer[size:]
        return piece

    def sendmsg(self, buffers: list[memoryview], *_: Any) -> int:
        second = b"".join(buffers)
        if len(second) == GREETING.size:
            self._stream = SealedStream(CLUSTER, OWN, self._first, second, connecting=True)
        return len(second)


def check(data: bytes) -> None:
    peer = Peer(Script(data))
    received = b""

    async def serve() -> None:
        nonlocal received
        connected: socket.socket = peer  # type: ignore[assignment]
        channel: Channel = await _SEALING.accepted(connected)
        head = await channel.receive(REQUEST_LENGTH.size)
        received += head
        (length,) = REQUEST_LENGTH.unpack(head)
        if length > limits.SNAPSHOT_REQUEST_BYTES:
            raise Malformed(f"a request of {length} bytes")
        request = await channel.receive(length)
        received += request
        asked = well_formed(decode_request, request)
        assert asked is None or decode_request(encode_request(asked)) == asked
        while True:
            received += await channel.receive(8)

    try:
        run(serve())
    except Malformed:
        pass
    assert peer.sealed.startswith(received), "bytes that nobody sealed have come out"


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Without a loop: there is nothing to wait for."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result


def seeds() -> Iterator[bytes]:
    request = encode_request(Request(7, 2, 0x1002, "0" * 31 + "1", 3, False))
    whole = REQUEST_LENGTH.pack(len(request)) + request
    yield b"\1" + bytes([len(whole) << 1 | 1]) + whole
    yield b"\1" + bytes([4 << 1 | 1]) + whole[:4] + bytes([len(request) << 1 | 1]) + request + b"\7abc"
    yield b"\1" + bytes([4 << 1 | 1]) + REQUEST_LENGTH.pack(2**32 - 1)
    yield b"\1" + bytes([4 << 1]) + LENGTH.pack(2**32 - 1) + b"\2x"
    yield b"\1" + bytes([24 << 1]) + LENGTH.pack(4) + bytes(20)
    yield b"\0" + bytes([GREETING.size << 1]) + sealed_stream.greeting(CLUSTER, OWN, _NONCE)
    yield b"\0" + bytes([GREETING.size << 1]) + sealed_stream.greeting("other", OWN, _NONCE)


TARGET: Final = Target(check, seeds, ("wire/sealed_stream.py", "agent/channel.py"), most_bytes=512)
