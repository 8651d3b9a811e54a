"""Who does not take or finish its events, and since when.

Once a second the agent looks at each subscription that has got something. What it can know without asking the
program: an event that the library said is not done (``OUT_OF_LINE``), and whether anything was taken off the event
socket since an earlier look. The kernel tells how much of the socket is unread, in its own accounting, which counts
at least the bytes that were written: where nothing was taken, it has grown at least by them. So a program that does
take its events is never called stuck for long, and one that does not is from the second look on.

An event that a callback works on while nothing waits behind it is seen only where the program finishes events
itself (``oc_ev_event_done``); it holds up nobody either.
"""

from __future__ import annotations

import array
import fcntl
import socket
import termios
from typing import Final, NamedTuple

from ocfcluster.ipc.subscription import Subscription, Unread

SIOCOUTQ: Final = termios.TIOCOUTQ


class Outstanding(NamedTuple):
    """The oldest event that a subscription's program has not finished, or not taken.

    Of events not taken ``seq`` is the newest that was in the socket at ``since``: the oldest is this one or earlier.
    """

    topic: str
    seq: int
    since: int
    taken: bool  # the program has got it and has not said that it is done


def unread_bytes(event_socket: object) -> int:
    """What is in a lent socket, as the kernel counts; -1 where it cannot be asked."""
    if not isinstance(event_socket, socket.socket):
        return -1
    answer = array.array("i", [0])
    try:
        fcntl.ioctl(event_socket.fileno(), SIOCOUTQ, answer)
    except (OSError, ValueError):
        return -1
    return answer[0]


def look(subscription: Subscription, now: int, unread: int) -> None:
    """Note whether something was taken since the last look; ``unread`` are the bytes in the socket now."""
    mark = subscription.unread
    if unread <= 0:
        subscription.unread = None
    elif mark is None or unread < mark.socket_bytes + subscription.sent_bytes - mark.sent_bytes:
        topic_id, seq = subscription.sent
        subscription.unread = Unread(topic_id, seq, now, unread, subscription.sent_bytes)


def outstanding(subscription: Subscription) -> Outstanding | None:
    """What is known of the oldest event that the program has not finished or taken."""
    held, mark = subscription.held, subscription.unread
    if held is not None and (mark is None or held.since <= mark.since):
        return Outstanding(held.topic, held.seq, held.since, True)
    if mark is not None:
        name = subscription.names.get(abs(mark.topic_id), "")
        return Outstanding(name, mark.seq, mark.since, False)
    return None
