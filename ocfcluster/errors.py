"""The project's errors, in one tree.

::

    OcfError                      everything raised on purpose
    ├── ConfigurationError        a file or option is wrong: names the key and what would be right
    ├── SetupError                the machine is not ready (interface, port, buffer): says what to do
    ├── StateDirectoryError       the state directory is corrupt, foreign or locked
    │   └── StateDirectoryUnavailable   the system does not let it be read or written, and may later
    ├── Malformed                 bytes that are not what they claim; counted and dropped, never fatal
    │   ├── MalformedDatagram
    │   ├── MalformedRun
    │   ├── MalformedSnapshot
    │   └── MalformedFrame
    └── ClientError (OSError)     what a call of the client library raises; `errno` as the OCF drafts say
        ├── InvalidArgument       EINVAL     unknown descriptor, bad name, wrong argument
        │   ├── UnknownTopic      EINVAL     no such topic (after the agent caught up with the order)
        │   └── FilterError       EINVAL     the text of a filter cannot be read; says where
        ├── NotPermitted          EPERM
        ├── LimitReached          ENOMEM     a configured limit
        ├── TopicExists           EEXIST     created before with other settings, or get_event on a callback
        ├── NoSubscription        ENOENT     oc_ev_handle_events with nothing to handle
        ├── TooLarge              EMSGSIZE   the event is larger than the cluster's largest
        ├── WouldBlock            EAGAIN     no room within the time given
        ├── WouldDeadlock         EDEADLK    waiting would wait for the calling thread itself
        ├── AgentUnreachable      ECONNREFUSED  nothing listens on the socket
        ├── Refused               EBUSY      administration that the cluster cannot carry out as it stands
        ├── NotConnected          ENOTCONN   the agent went away, or the subscription ended
        └── OutcomeUnknown        EIO        a publication that may or may not have been delivered
"""

from __future__ import annotations

import errno as _errno


class OcfError(Exception):
    """Everything this project raises on purpose."""


class ConfigurationError(OcfError):
    """A configuration file or option is wrong; the message names the key, the file and what would be right."""


class SetupError(OcfError):
    """The machine is not ready for the agent; the message says what to do about it."""


class StateDirectoryError(OcfError):
    """The state directory is corrupt, belongs to another node or cluster, or is locked by a live agent."""


class StateDirectoryUnavailable(StateDirectoryError):
    """The system does not let the state directory be read or written: read-only, full, out of descriptors."""


class Malformed(OcfError):
    """Bytes that are not what they claim to be."""


class MalformedDatagram(Malformed):
    """A datagram that is truncated, inconsistent or of another protocol."""


class MalformedRun(Malformed):
    """A run whose count, lengths or checksum do not agree with its bytes."""


class MalformedSnapshot(Malformed):
    """What came over TCP is no snapshot of a running cluster's state."""


class MalformedFrame(Malformed):
    """A frame of the local protocol that is truncated or inconsistent."""


class ClientError(OcfError, OSError):
    """What a call of the client library raises. ``errno`` is set, so ``except OSError`` works as in the drafts."""

    code: int = _errno.EIO

    def __init__(self, message: str) -> None:
        OSError.__init__(self, self.code, message)


class InvalidArgument(ClientError):
    code = _errno.EINVAL


class UnknownTopic(InvalidArgument):
    pass


class FilterError(InvalidArgument):
    """The text of a filter is wrong at ``position``, an offset in ``text``."""

    def __init__(self, why: str, text: str = "", position: int = 0) -> None:
        super().__init__(f"filter, character {position + 1}: {why}")
        self.why = why
        self.text = text
        self.position = position

    def pointer(self, width: int = 72) -> str:
        """Two lines: the text around the place on one line, and a mark below the place."""
        begin = max(0, self.position - width // 2)
        shown = "".join(c if c.isprintable() else " " for c in self.text[begin : begin + width])
        return f"{shown}\n{' ' * (self.position - begin)}^"


class NotPermitted(ClientError):
    code = _errno.EPERM


class LimitReached(ClientError):
    code = _errno.ENOMEM


class TopicExists(ClientError):
    code = _errno.EEXIST


class NoSubscription(ClientError):
    code = _errno.ENOENT


class TooLarge(ClientError):
    code = _errno.EMSGSIZE


class WouldBlock(ClientError):
    code = _errno.EAGAIN


class WouldDeadlock(ClientError):
    code = _errno.EDEADLK


class AgentUnreachable(ClientError):
    code = _errno.ECONNREFUSED


class Refused(ClientError):
    code = _errno.EBUSY


class NotConnected(ClientError):
    code = _errno.ENOTCONN


class NoSuchMember(ClientError):
    code = _errno.ESRCH


class OutcomeUnknown(ClientError):
    code = _errno.EIO


_BY_ERRNO: dict[int, type[ClientError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument, NotPermitted, LimitReached, TopicExists, NoSubscription, TooLarge,
        WouldBlock, WouldDeadlock, AgentUnreachable, Refused, NotConnected, NoSuchMember, OutcomeUnknown,
    )
}  # fmt: skip


def client_error(code: int, message: str) -> ClientError:
    """The error of this tree that carries ``code`` (an errno); codes without a class of their own give EIO's."""
    return _BY_ERRNO.get(code, OutcomeUnknown)(message)
