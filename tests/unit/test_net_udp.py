"""The hot paths of a socket, against kernels that refuse."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from ocfcluster import limits
from ocfcluster.errors import SetupError
from ocfcluster.net import offload, udp
from ocfcluster.net.transport import Received, datagram_count
from ocfcluster.net.udp import UdpSocket
from tests.unit.net_support import numbered_buffer, split


class Kernel:
    """Stands where a socket's system calls are; records what it took and refuses by plan."""

    def __init__(self, segmented: int = 0, plain: list[int] | None = None) -> None:
        self.segmented_errno = segmented
        self.plain_errnos = plain or []  # one per plain send, 0 taken; after the last all are taken
        self.segmented: list[bytes] = []
        self.plain: list[bytes] = []

    def sendmsg(self, buffers: list[bytes], ancillary: object, flags: int, address: object) -> int:
        if self.segmented_errno:
            raise OSError(self.segmented_errno, os.strerror(self.segmented_errno))
        self.segmented += buffers
        return len(buffers[0])

    def sendto(self, datagram: bytes | memoryview, address: object) -> int:
        code = self.plain_errnos.pop(0) if self.plain_errnos else 0
        if code:
            raise OSError(code, os.strerror(code))
        self.plain.append(bytes(datagram))
        return len(datagram)


@pytest.fixture
def counters() -> dict[str, int]:
    return {}


@pytest.fixture
def socket_(counters: dict[str, int]) -> Iterator[UdpSocket]:
    opened = udp.open_socket(socket.AF_INET)
    opened.bind(("127.0.0.1", 0))
    yield UdpSocket(opened, counters)
    opened.close()


def put(kernel: Kernel, socket_: UdpSocket) -> None:
    socket_._sendmsg = kernel.sendmsg
    socket_._sendto = kernel.sendto


BUFFER = numbered_buffer(5, 100, 40)
PEER = ("127.0.0.1", 9)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_kernel_that_cannot_segment_gets_plain_datagrams_from_then_on(
    socket_: UdpSocket, counters: dict[str, int], code: int
) -> None:
    kernel = Kernel(segmented=code)
    put(kernel, socket_)
    socket_.send(BUFFER, 100, PEER)
    assert kernel.plain == split(BUFFER, 100)
    assert not socket_.segmenting
    kernel.segmented_errno = 0
    socket_.send(BUFFER, 100, PEER)
    assert kernel.segmented == []
    assert kernel.plain == split(BUFFER, 100) * 2
    assert counters == {f"send_{errno.errorcode[code]}": 1, "send_fallback": 1}


def test_a_segment_above_the_mtu_costs_only_that_buffer_its_segmentation(
    socket_: UdpSocket, counters: dict[str, int]
) -> None:
    kernel = Kernel(segmented=errno.EMSGSIZE, plain=[errno.EMSGSIZE] * 4)
    put(kernel, socket_)
    socket_.send(BUFFER, 100, PEER)
    assert kernel.plain == [BUFFER[400:]]  # the last, shorter one passes
    assert socket_.segmenting
    assert counters == {"send_EMSGSIZE": 5, "send_fallback": 1, "send_dropped": 4}


def test_a_destination_that_the_kernel_refuses_does_not_end_segmentation(
    socket_: UdpSocket, counters: dict[str, int]
) -> None:
    socket_.send(BUFFER, 100, ("127.0.0.1", 0))  # the real kernel: EINVAL, however it is sent
    assert socket_.segmenting
    assert counters == {"send_EINVAL": 2, "send_fallback": 1, "send_dropped": 5}


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOBUFS, errno.ENETUNREACH, errno.EPERM])
def test_what_the_kernel_does_not_take_is_counted_and_dropped(
    socket_: UdpSocket, counters: dict[str, int], code: int
) -> None:
    kernel = Kernel(segmented=code, plain=[code])
    put(kernel, socket_)
    socket_.send(BUFFER, 100, PEER)
    socket_.send(b"one", 3, PEER)
    assert kernel.plain == []
    assert socket_.segmenting
    assert counters == {f"send_{errno.errorcode[code]}": 2, "send_dropped": 6}


def test_a_full_kernel_gets_no_more_of_a_plainly_sent_buffer(counters: dict[str, int]) -> None:
    with udp.open_socket(socket.AF_INET) as opened:
        sender = UdpSocket(opened, counters, segmenting=False)
        kernel = Kernel(plain=[0, 0, errno.EAGAIN])
        put(kernel, sender)
        sender.send(BUFFER, 100, PEER)
    assert kernel.plain == split(BUFFER, 100)[:2]
    assert counters == {"send_EAGAIN": 1, "send_dropped": 3}


def test_a_host_that_is_no_address_is_counted(socket_: UdpSocket, counters: dict[str, int]) -> None:
    socket_.send(b"x", 1, ("memory.invalid.", 1))
    assert counters == {"send_OTHER": 1, "send_dropped": 1}


@pytest.mark.parametrize(("length", "segment"), [(65 * 10, 10), (1, 0), (5, -1)])
def test_more_segments_than_a_buffer_may_have_are_the_callers_error(
    socket_: UdpSocket, length: int, segment: int
) -> None:
    with pytest.raises(ValueError, match="segment"):
        socket_.send(bytes(length), segment, PEER)


def test_datagrams_are_counted_as_they_are_cut() -> None:
    assert [datagram_count(length, 100) for length in (1, 100, 101, 200, 6400)] == [1, 1, 2, 2, 64]
    with pytest.raises(ValueError, match="65 segments in one buffer; 64 is the most"):
        datagram_count(6401, 100)


def test_receiving_counts_what_it_drops_and_goes_on(socket_: UdpSocket, counters: dict[str, int]) -> None:
    answers = iter(
        [
            (b"", [], 0, PEER),
            (b"cut", [], socket.MSG_TRUNC, PEER),
            (b"lost its segment size", [], socket.MSG_CTRUNC, PEER),
            OSError(errno.ECONNREFUSED, "refused"),
            (b"good", [], 0, PEER),
            BlockingIOError(errno.EAGAIN, "empty"),
        ]
    )

    def recvmsg(size: int, ancillary: int) -> tuple[bytes, list[offload.Ancillary], int, tuple[str, int]]:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    socket_._recvmsg = recvmsg
    received: list[Received] = []
    socket_.receive(10, received)
    assert received == [(b"good", 4, PEER)]
    assert counters == {"receive_empty": 1, "receive_truncated": 2, "receive_ECONNREFUSED": 1}


def test_a_closed_socket_receives_nothing(socket_: UdpSocket, counters: dict[str, int]) -> None:
    socket_.close()
    received: list[Received] = []
    socket_.receive(10, received)
    assert received == []
    assert counters == {"receive_EBADF": 1}


@pytest.mark.parametrize(("number", "segment"), [(40, 40), (0, 100), (-1, 100), (100, 100), (5000, 100)])
def test_a_segment_size_that_makes_no_sense_is_not_believed(number: int, segment: int) -> None:
    ancillary = [(socket.IPPROTO_UDP, offload.UDP_GRO, number.to_bytes(4, "little", signed=True))]
    assert offload.received_segment(ancillary, 100) == segment
    assert offload.received_segment([(socket.SOL_SOCKET, 1, b"\1\0\0\0")], 100) == 100


def test_too_small_a_receive_buffer_names_the_sysctl() -> None:
    with udp.open_socket(socket.AF_INET) as opened, pytest.raises(SetupError) as caught:
        udp.grow_receive_buffer(opened, 65_536, [])
    assert "65536 bytes" in str(caught.value)
    assert f"sysctl -w net.core.rmem_max={limits.RECEIVE_BUFFER_BYTES}" in str(caught.value)


def test_less_receive_buffer_than_asked_for_is_a_warning_given_once() -> None:
    class Unprivileged(socket.socket):
        __slots__ = ()

        def setsockopt(self, level: int, name: int, value: int) -> None:  # type: ignore[override]
            if name == udp._SO_RCVBUFFORCE:
                raise PermissionError(errno.EPERM, "not permitted")
            super().setsockopt(level, name, 300_000)  # as if that were net.core.rmem_max

    warnings: list[str] = []
    with Unprivileged(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        for _ in range(2):
            granted = udp.grow_receive_buffer(opened, limits.RECEIVE_BUFFER_BYTES, warnings)
    if granted < 300_000:
        pytest.skip(f"net.core.rmem_max is {granted} here")
    assert granted == 300_000
    assert len(warnings) == 1
    assert f"300000 of {limits.RECEIVE_BUFFER_BYTES} bytes" in warnings[0]
    assert "sysctl -w net.core.rmem_max=" in warnings[0]


def refuse(code: int) -> type[socket.socket]:
    class Refusing(socket.socket):
        __slots__ = ()

        def bind(self, address: object) -> None:
            raise OSError(code, os.strerror(code))

    return Refusing


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (
            errno.EADDRINUSE,
            r"UDP port 99 of 10\.0\.0\.1 is in use .*ss -ulpn 'sport = :99'.* change network\.port",
        ),
        (errno.EACCES, r"no permission for UDP port 99 .*1024 or more.*CAP_NET_BIND_SERVICE"),
        (errno.EADDRNOTAVAIL, r"10\.0\.0\.1 is not on this machine: choose another network\.interface"),
        (errno.ENOMEM, r"cannot bind UDP port 99 of 10\.0\.0\.1"),
    ],
)
def test_a_refused_bind_says_what_to_do(code: int, advice: str) -> None:
    with refuse(code)(socket.AF_INET, socket.SOCK_DGRAM) as opened, pytest.raises(SetupError, match=advice):
        udp.bind(opened, ("10.0.0.1", 99), "network.port")


def test_a_kernel_without_ipv6_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ipv6(*arguments: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "not supported")

    monkeypatch.setattr(udp.socket, "socket", no_ipv6)
    with pytest.raises(SetupError, match="no IPv6: choose an IPv4 interface"):
        udp.open_socket(socket.AF_INET6)
