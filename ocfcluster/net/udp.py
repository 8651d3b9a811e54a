"""One UDP socket: opening it with advice where that fails, and its hot paths for sending and receiving."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from ocfcluster import limits
from ocfcluster.errors import SetupError
from ocfcluster.net import offload
from ocfcluster.net.transport import Address, Received, count, datagram_count

IPV4_OVERHEAD_BYTES: Final = 28  # IP header without options, UDP header
IPV6_OVERHEAD_BYTES: Final = 48

_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3

# Python gives a bytes object of this size to the kernel and shrinks it to what came; no UDP payload is larger.
_RECEIVE_BYTES: Final = 65_536
# A number: as an enum each test would cost as much as a small read.
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

_NOT_SEGMENTED: Final = (errno.EMSGSIZE, errno.EINVAL, errno.EIO)


def ip_overhead_bytes(family: int) -> int:
    return IPV4_OVERHEAD_BYTES if family == socket.AF_INET else IPV6_OVERHEAD_BYTES


def socket_address(family: int, host: str, port: int, scope: int) -> Address:
    return (host, port) if family == socket.AF_INET else (host, port, 0, scope)


def open_socket(family: int) -> socket.socket:
    """A non-blocking UDP socket that never fragments: a datagram above the mtu is an error, not a hidden loss.

    Sizes learned from ICMP are ignored as well (anybody can forge them); links that pass less than they should show
    in the padded heartbeats.
    """
    try:
        opened = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise SetupError("this kernel has no IPv6: choose an IPv4 interface and group") from error
        raise SetupError(f"cannot open a UDP socket: {error.strerror}") from error
    opened.setblocking(False)
    if family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
    return opened


def bind(opened: socket.socket, address: Address, setting: str) -> None:
    """Bind, or raise a SetupError that names ``setting`` (a configuration key of the port) and what to do."""
    host, port = address[0], address[1]
    try:
        opened.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"UDP port {port} of {host} is in use by another program (ss -ulpn 'sport = :{port}' shows it): "
                f"stop it or change {setting}"
            ) from error
        if error.errno == errno.EACCES:
            raise SetupError(
                f"no permission for UDP port {port} of {host}: set {setting} to 1024 or more, "
                "or give the agent CAP_NET_BIND_SERVICE"
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise SetupError(
                f"address {host} is not on this machine: choose another network.interface (ip address show lists them)"
            ) from error
        raise SetupError(f"cannot bind UDP port {port} of {host}: {error.strerror}") from error


def grow_receive_buffer(opened: socket.socket, asked_bytes: int, warnings: list[str]) -> int:
    """Ask for a receive buffer; what was granted, in bytes as asked (the kernel doubles that for its own use).

    SetupError below ``limits.RECEIVE_BUFFER_FLOOR_BYTES``; a warning where it is less than asked.
    """
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, asked_bytes)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, asked_bytes)
    granted_bytes = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    advice = f"sysctl -w net.core.rmem_max={max(asked_bytes, limits.RECEIVE_BUFFER_BYTES)}"
    if granted_bytes < limits.RECEIVE_BUFFER_FLOOR_BYTES:
        raise SetupError(
            f"the kernel grants a receive buffer of {granted_bytes} bytes; at least "
            f"{limits.RECEIVE_BUFFER_FLOOR_BYTES} are needed: raise net.core.rmem_max ({advice})"
        )
    if granted_bytes < asked_bytes:
        warning = (
            f"the kernel granted a receive buffer of {granted_bytes} of {asked_bytes} bytes, which lowers throughput: "
            f"raise net.core.rmem_max ({advice})"
        )
        if warning not in warnings:
            warnings.append(warning)
    return granted_bytes


def grow_send_buffer(opened: socket.socket) -> None:
    """Ask for room for a full window, so that a burst is not dropped here; less only means resending sooner."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, limits.SEND_BUFFER_BYTES)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.SEND_BUFFER_BYTES)


class UdpSocket:
    """The hot paths of one open, bound socket; the transport that owns it shares its ``counters``.

    ``own``: (payload offset, bytes) of buffers that are dropped on receipt, for sockets whose own datagrams come back
    and whose kernel does not filter them.
    """

    __slots__ = (
        "_ancillary",
        "_counters",
        "_own",
        "_own_end",
        "_own_start",
        "_recvmsg",
        "_segment",
        "_segmenting",
        "_sendmsg",
        "_sendto",
        "_socket",
    )

    def __init__(
        self,
        opened: socket.socket,
        counters: dict[str, int],
        *,
        segmenting: bool = True,
        own: tuple[int, bytes] | None = None,
    ) -> None:
        self._socket = opened
        self._counters = counters
        self._segmenting = segmenting and offload.can_segment(opened)
        self._segment = 0
        self._ancillary: list[offload.Ancillary] = []
        self._own_start, self._own = own or (0, b"")
        self._own_end = self._own_start + len(self._own)
        # Looked up once; also the seam where tests put a kernel that refuses.
        self._sendmsg: Callable[[list[bytes], list[offload.Ancillary], int, Address], int] = opened.sendmsg
        self._sendto: Callable[[bytes | memoryview, Address], int] = opened.sendto
        self._recvmsg = opened.recvmsg

    @property
    def segmenting(self) -> bool:
        """Whether buffers still go out in one piece."""
        return self._segmenting

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def address(self) -> Address:
        name: Address = self._socket.getsockname()
        return name

    def close(self) -> None:
        self._socket.close()

    def send(self, buffer: bytes, segment: int, address: Address) -> None:
        """Send a buffer (``net.transport``), in one system call where it can be; never blocks."""
        if len(buffer) > segment:
            if len(buffer) > segment * limits.SEGMENT_COUNT:
                datagram_count(len(buffer), segment)  # raises ValueError
            if not self._segmenting:
                self._send_plainly(buffer, segment, address)
                return
            if segment != self._segment:
                self._ancillary = offload.segment_ancillary(segment)
                self._segment = segment
            try:
                self._sendmsg([buffer], self._ancillary, 0, address)
            except OSError as error:
                self._on_segmented_failure(error, buffer, segment, address)
        else:
            try:
                self._sendto(buffer, address)
            except OSError as error:
                self._count_send_failure(error, 1)

    def receive(self, limit: int, into: list[Received]) -> None:
        """Append what has arrived to ``into``, at most ``limit`` buffers."""
        recvmsg = self._recvmsg
        own = self._own
        for _ in range(limit):
            try:
                buffer, ancillary, flags, source = recvmsg(_RECEIVE_BYTES, offload.ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                count(self._counters, f"receive_{_name(error)}")
                if error.errno == errno.EBADF:
                    return
                continue
            if not buffer:
                count(self._counters, "receive_empty")
            elif flags & _CUT:
                count(self._counters, "receive_truncated")
            elif own and buffer[self._own_start : self._own_end] == own:
                count(self._counters, "own_dropped")
            elif ancillary:
                into.append((buffer, offload.received_segment(ancillary, len(buffer)), source))
            else:
                into.append((buffer, len(buffer), source))

    def _on_segmented_failure(self, error: OSError, buffer: bytes, segment: int, address: Address) -> None:
        if error.errno not in _NOT_SEGMENTED:
            self._count_send_failure(error, datagram_count(len(buffer), segment))
            return
        count(self._counters, f"send_{_name(error)}")
        count(self._counters, "send_fallback")
        sent = self._send_plainly(buffer, segment, address)
        # EMSGSIZE is about this path's mtu. The others mean a device or kernel that cannot segment, unless the
        # destination itself is what it refuses: then the plain sends failed as well.
        if sent and error.errno != errno.EMSGSIZE:
            self._segmenting = False

    def _send_plainly(self, buffer: bytes, segment: int, address: Address) -> int:
        """Send each datagram by itself; how many the kernel took."""
        view = memoryview(buffer)
        total = datagram_count(len(buffer), segment)
        sent = 0
        for index in range(total):
            try:
                self._sendto(view[index * segment : (index + 1) * segment], address)
                sent += 1
            except OSError as error:
                if error.errno != errno.EMSGSIZE:  # the rest would fare no better
                    self._count_send_failure(error, total - index)
                    break
                self._count_send_failure(error, 1)
        return sent

    def _count_send_failure(self, error: OSError, datagrams: int) -> None:
        count(self._counters, f"send_{_name(error)}")
        count(self._counters, "send_dropped", datagrams)


def _name(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno is None:
        return "OTHER"
    return errno.errorcode.get(error.errno, "OTHER")
