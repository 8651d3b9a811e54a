"""The OCF Event Notification API (draft 0.4, with what 0.3 had and 0.4 does not replace), function for function.

One client for the whole process, made by the first call that needs it, without resumption: when the agent ends,
every subscription gets a notice and then an end (ENOTCONN until it is unsubscribed); what is subscribed to after
that goes to a new connection. Where the drafts return -1 or NULL these functions raise OSError (a ClientError) with
the errno of the drafts; where they return 0 so do these. Every function may be called from any thread.

>>> from ocfcluster.ocf import *                                   # doctest: +SKIP
>>> def on_event(event):
...     print(event.topic, event.seq, event.data)
...     oc_ev_event_done(event)
>>> ed = oc_ev_subscribe("demo", on_event)
>>> oc_ev_handle_events()
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ocfcluster import __version__
from ocfcluster.client.arguments import Data, check_callback, check_timeout_ms
from ocfcluster.client.client import Client, Subscription
from ocfcluster.client.dispatch import Entry
from ocfcluster.client.events import Event, Receipt, TopicInfo
from ocfcluster.client.session import Stage
from ocfcluster.client.starting import Position
from ocfcluster.components.connectivity import CONN_CLASS, ConnectivityCode
from ocfcluster.components.membership import MEMB_CLASS, MembershipCode, event_class, event_number
from ocfcluster.errors import ClientError, InvalidArgument, NoSubscription, NotConnected
from ocfcluster.wire.group import GROUP_CLASS, GroupCode

if TYPE_CHECKING:
    from ocfcluster.wire.filter import Filter

__all__ = [
    "OC_EV_CONN_CLASS",
    "OC_EV_CS_CONNECT",
    "OC_EV_CS_ELIGIBLE",
    "OC_EV_CS_INTERFACE",
    "OC_EV_GET_CLASS",
    "OC_EV_GET_EVENT",
    "OC_EV_GROUP_CLASS",
    "OC_EV_GS_CAST",
    "OC_EV_GS_JOIN",
    "OC_EV_GS_LEAVE",
    "OC_EV_GS_MEMBERS",
    "OC_EV_GS_REPLY",
    "OC_EV_GS_SEND",
    "OC_EV_MEMB_CLASS",
    "OC_EV_MS_EVICTED",
    "OC_EV_MS_NEW_MEMBERSHIP",
    "OC_EV_MS_NOT_PRIMARY",
    "OC_EV_MS_PRIMARY_RESTORED",
    "S_OC_EV_CONN_CLASS",
    "S_OC_EV_MEMB_CLASS",
    "oc_ev_event_done",
    "oc_ev_get_event",
    "oc_ev_get_fd",
    "oc_ev_get_version",
    "oc_ev_handle_event",
    "oc_ev_handle_events",
    "oc_ev_is_my_nodeid",
    "oc_ev_publish",
    "oc_ev_set_on_event",
    "oc_ev_subscribe",
    "oc_ev_topic_create",
    "oc_ev_topic_list",
    "oc_ev_topic_remove",
    "oc_ev_unsubscribe",
    "oc_gs_cast",
    "oc_gs_join",
    "oc_gs_leave",
    "oc_gs_reply",
    "oc_gs_send",
]

API_LEVEL: Final = "0.4"
_LOOK_S: Final = 0.2  # so often what an agent that has ended has left is looked at, while others are served
S_OC_EV_MEMB_CLASS: Final = "__OC_EV_MEMB_CLASS"  # draft 0.3's name of the topic oc.membership
OC_EV_MEMB_CLASS: Final = MEMB_CLASS
OC_EV_MS_NEW_MEMBERSHIP: Final = int(MembershipCode.NEW_MEMBERSHIP)
OC_EV_MS_NOT_PRIMARY: Final = int(MembershipCode.NOT_PRIMARY)
OC_EV_MS_PRIMARY_RESTORED: Final = int(MembershipCode.PRIMARY_RESTORED)
OC_EV_MS_EVICTED: Final = int(MembershipCode.EVICTED)
S_OC_EV_CONN_CLASS: Final = "__OC_EV_CONN_CLASS"  # of the topic oc.connectivity
OC_EV_CONN_CLASS: Final = CONN_CLASS
OC_EV_CS_INTERFACE: Final = int(ConnectivityCode.INTERFACE)
OC_EV_CS_ELIGIBLE: Final = int(ConnectivityCode.ELIGIBLE)
OC_EV_CS_CONNECT: Final = int(ConnectivityCode.CONNECT)
OC_EV_GROUP_CLASS: Final = GROUP_CLASS
OC_EV_GS_JOIN: Final = int(GroupCode.JOIN)
OC_EV_GS_LEAVE: Final = int(GroupCode.LEAVE)
OC_EV_GS_CAST: Final = int(GroupCode.CAST)
OC_EV_GS_REPLY: Final = int(GroupCode.REPLY)
OC_EV_GS_SEND: Final = int(GroupCode.SEND)  # this and the next one are ours, behind the drafts' four
OC_EV_GS_MEMBERS: Final = int(GroupCode.MEMBERS)
OC_EV_GET_CLASS: Final = event_class
OC_EV_GET_EVENT: Final = event_number
OnEvent = Callable[[Event], object]
Answer = TypeVar("Answer")


class Version(NamedTuple):
    """``api``: the draft; ``library``: this package; ``agent``: the agent's version, None where none is connected."""

    api: str
    library: str
    agent: str | None


class _Descriptor:
    """What an event descriptor stands for."""

    __slots__ = ("client", "subscription", "callback", "take", "outstanding")

    def __init__(self, client: Client, subscription: Subscription, callback: bool) -> None:
        self.client = client
        self.subscription = subscription
        self.callback = callback
        self.take = subscription.event_socket.take_event
        self.outstanding: set[int] = set()  # ids of events given out by get_event and not done


_lock = threading.Lock()
_client: Client | None = None
_descriptors: dict[int, _Descriptor] = {}
_next_descriptor = 0


def _default_client() -> Client:
    """The process's client; a new one where the last one's agent has ended. Raises AgentUnreachable."""
    global _client
    with _lock:
        if _client is None or _client.closed or _client.connection().session.stage is Stage.ENDED:
            _client = Client(name=f"ocf {os.getpid()}", resume=False)
        return _client


def _ask(call: Callable[[Client], Answer]) -> Answer:
    """``call`` with the process's client; again with a new one where the last one's agent turns out to be gone.

    A program may have been told of the end by an event before the connection itself has ended.
    """
    client = _default_client()
    try:
        return call(client)
    except NotConnected:
        if _default_client() is client:
            raise
    return call(_default_client())


def _of(ed: int) -> _Descriptor:
    try:
        return _descriptors[ed]
    except (KeyError, TypeError):  # TypeError: what cannot be a key
        raise InvalidArgument(f"{ed!r:.80} is no event descriptor") from None


# --- subscribing ------------------------------------------------------------------------------------------------


def oc_ev_subscribe(
    topic: str,
    fn: OnEvent | None = None,
    *,
    filter: Filter | str | None = None,  # noqa: A002 - what it is called everywhere
    on_slow: str = "block",
    from_seq: int | Position | None = None,
    from_last: int | None = None,
    retained: bool = False,
) -> int:
    """Subscribe to ``topic``; gives an event descriptor. With ``fn`` events come by callback, else by get_event.

    Events come from now on; and before that, of what the topic keeps, all from ``from_seq`` on, or the last
    ``from_last``, or all (``retained``). What was asked for with ``from_seq`` and is not kept is a gap notice.
    ``filter`` and ``on_slow`` are those of ``Client.subscribe``.
    EINVAL no such topic, no name of a topic, or no filter; EPERM; ENOMEM a limit; ECONNREFUSED no agent.
    """
    global _next_descriptor
    check_callback(fn)
    client, subscription = _ask(
        lambda client: (
            client,
            client.subscribe_for(
                topic,
                fn,
                None,
                filter,
                on_slow,
                manual=True,
                from_seq=from_seq,
                from_last=from_last,
                retained=retained,
            ),
        )
    )
    with _lock:
        ed = _next_descriptor
        _next_descriptor += 1
        _descriptors[ed] = _Descriptor(client, subscription, fn is not None)
    return ed


def oc_ev_unsubscribe(ed: int) -> int:
    """No event after this returns; allowed in a callback. Events given out stay valid until done. EINVAL."""
    with _lock:
        descriptor = _of(ed)
        del _descriptors[ed]
    descriptor.subscription.close()
    return 0


def oc_ev_get_fd(ed: int) -> int:
    """The descriptor for select, poll and epoll: readable exactly while something waits to be taken. EINVAL.

    With edge-triggered epoll or signals take until ``oc_ev_get_event`` gives None; not in a signal handler, which may
    call none of these functions.
    """
    return _of(ed).subscription.fileno()


def oc_ev_set_on_event(ed: int, fn: OnEvent | None) -> int:
    """Replace the callback from the next event on; None turns to ``oc_ev_get_event``, and a function back again.

    EINVAL, also for a descriptor that was subscribed to without a callback: it has no place in the callbacks' order.
    """
    descriptor = _of(ed)
    event_socket = descriptor.subscription.event_socket
    check_callback(fn)
    if not event_socket.state.callback:
        raise InvalidArgument(f"event descriptor {ed} was subscribed to without a callback")
    connection = descriptor.client.connection()
    if fn is not None and descriptor.callback:
        connection.dispatcher.replace(event_socket, fn)
        return 0
    descriptor.callback = fn is not None
    descriptor.subscription.set_callback(fn is not None)
    if fn is None:
        connection.dispatcher.remove(event_socket)
    else:
        connection.dispatcher.add(event_socket, fn, manual=True)
    connection.out_of_line(event_socket, fn is None)  # who pulls holds up no callback
    return 0


# --- taking events ----------------------------------------------------------------------------------------------


def oc_ev_handle_events() -> int:
    """Serve all callbacks in this thread, in the one cluster order, until no callback subscription is left.

    Where the agent ended and another one is used: what came from the first one, and the notice of its end, goes first.
    ENOENT where there is none to begin with; ENOTCONN where all that are left have ended; EDEADLK in a callback.
    """
    served = False
    ended: set[Client] = set()
    while True:
        with _lock:
            clients = dict.fromkeys(one.client for one in _descriptors.values() if one.callback)
        if not clients:
            if not served:
                raise NoSubscription("there is no subscription with a callback")
            return 0
        dispatchers = {
            client: client.connection().dispatcher
            for client in clients
            if client not in ended and not client.closed
        }
        if not dispatchers:
            raise NotConnected("every subscription with a callback has ended")
        # Of several clients, the oldest first, the agents of all but the last have ended: what came from them is there.
        # An event that is not done yet holds back what is behind it, and not those of the last one: it is looked again.
        *older, last = dispatchers
        for client in older:
            while dispatchers[client].dispatch():
                pass
            if dispatchers[client].serve(0.0) is not None:
                ended.add(client)
        until = None if ended.issuperset(older) else time.monotonic() + _LOOK_S
        if dispatchers[last].serve(until) is not None:
            ended.add(last)
        served = True


def oc_ev_handle_event(ed: int) -> int:
    """Dispatch what is pending on one callback descriptor; smaller turns of the others go first. Never waits.

    EINVAL, also for a descriptor without a callback; ENOTCONN behind the end; EDEADLK in a callback.
    """
    descriptor = _of(ed)
    if not descriptor.callback:
        raise InvalidArgument(f"event descriptor {ed} has no callback")
    descriptor.client.connection().dispatcher.handle(descriptor.subscription.event_socket)
    return 0


def oc_ev_get_event(ed: int, timeout: int = -1) -> Event | None:
    """The next event; None where there is none within ``timeout`` ms (0: look, negative: wait for ever).

    EINVAL; EEXIST on a descriptor with a callback; ENOTCONN behind the end.
    """
    seconds = check_timeout_ms(timeout)
    descriptor = _of(ed)
    event = None if descriptor.callback else descriptor.take()  # the quick way, where one waits
    if event is None:
        event = descriptor.subscription.get(seconds)
    if event is not None:
        event.held = descriptor
        descriptor.outstanding.add(id(event))
    return event


def oc_ev_event_done(event: Event) -> int:
    """The program is done with an event that a callback or get_event got. EINVAL if it was done, or is none.

    An event is not done because its callback raised: the exception comes out of handle_event and handle_events, and
    the next event of the descriptor waits for this.
    """
    if not isinstance(event, Event):
        raise InvalidArgument("that is no event")
    held = event.held
    if isinstance(held, _Descriptor):
        try:
            held.outstanding.remove(id(event))  # atomic: of two threads one finds it gone
        except KeyError:
            raise InvalidArgument("the event is done already") from None
        event.held = None
    elif isinstance(held, Entry):
        held.dispatcher.done(held, event)
    else:
        raise InvalidArgument("the event is done already")
    return 0


# --- the node ---------------------------------------------------------------------------------------------------


def oc_ev_get_version() -> Version:
    """The versions of API, library and agent. Any time, also without an agent."""
    client = _client
    agent = None
    if client is not None and not client.closed and client.agent is not None:
        with contextlib.suppress(ClientError):
            if client.connection().session.stage is Stage.READY:
                agent = client.agent.library
    return Version(API_LEVEL, __version__, agent)


def oc_ev_is_my_nodeid(ed: int, node: Any) -> bool:
    """Whether ``node`` (a node id, or something with a ``node_id``) is the node of this descriptor's agent. EINVAL."""
    descriptor = _of(ed)
    node_id = getattr(node, "node_id", node)
    if not isinstance(node_id, int):
        raise InvalidArgument(f"{node!r} is no node")
    welcome = descriptor.client.agent
    return welcome is not None and welcome.node_id == node_id


# --- publishing and topics --------------------------------------------------------------------------------------


def oc_ev_publish(
    topic: str,
    data: Data,
    re_id: int = 0,
    properties: Mapping[str, str] | None = None,
    timeout: int = -1,
) -> Receipt:
    """Publish one event. Gives a receipt; its ``wait()`` gives seq and ev_id once the event is delivered here.

    Blocks while the cluster has no room, at most ``timeout`` ms (negative: for ever), then EAGAIN. EINVAL unknown
    topic; EMSGSIZE; EPERM; EDEADLK where it would wait for a subscription that this thread drains.
    """
    seconds = check_timeout_ms(timeout)
    return _ask(
        lambda client: client.publish(topic, data, re_id=re_id, properties=properties, timeout=seconds)
    )


def oc_ev_topic_create(topic: str, scope: str = "global") -> TopicInfo:
    """Create a topic of scope ``"global"`` or ``"local"``. EEXIST: it exists with the other scope. EPERM: this node
    does not let this user create topics. EINVAL."""
    return _ask(lambda client: client.create_topic(topic, scope))


def oc_ev_topic_list() -> Sequence[TopicInfo]:
    """All topics, by name."""
    return _ask(lambda client: client.topics())


def oc_ev_topic_remove(topic: str) -> int:
    """Remove a topic; its subscriptions end with a notice. EINVAL, EPERM."""
    _ask(lambda client: client.remove_topic(topic))
    return 0


# --- groups -----------------------------------------------------------------------------------------------------
# The drafts name the events and no functions: these are ours. ``oc_ev_subscribe("group:NAME")`` observes.


def oc_gs_join(group: str) -> int:
    """Become a member of a group, which needs no creation. Gives the member's id, the ev_id of its JOIN.

    A process is one member of a group. EINVAL no name of a group; EPERM; ENOMEM a limit.
    """
    return _ask(lambda client: client.group(group).join().member)


def oc_gs_leave(group: str) -> int:
    """Be a member no more; nothing where it is none."""
    _ask(lambda client: client.group(group).leave())
    return 0


def oc_gs_cast(group: str, data: Data, re_id: int = 0, timeout: int = -1) -> Receipt:
    """Say something to all members and observers. Gives a receipt. Errors as ``oc_ev_publish``."""
    seconds = check_timeout_ms(timeout)
    return _ask(lambda client: client.group(group).cast(data, re_id=re_id, timeout=seconds))


def oc_gs_send(group: str, member: int, data: Data, timeout: int = -1) -> Receipt:
    """Say something to one member. Its receipt raises ESRCH where there is no such member. EINVAL for no member."""
    seconds = check_timeout_ms(timeout)
    return _ask(lambda client: client.group(group).send(member, data, timeout=seconds))


def oc_gs_reply(event: Event, data: Data, timeout: int = -1) -> Receipt:
    """Answer a CAST or SEND, to all who got it. EINVAL where this process is no member, or for another event."""
    seconds = check_timeout_ms(timeout)
    if not isinstance(event, Event):
        raise InvalidArgument("that is no event")
    return _ask(lambda client: client.group(event.topic).reply(event, data, timeout=seconds))


def _after_fork() -> None:
    """A child has no descriptors; its first call that needs an agent connects anew."""
    global _lock, _client
    _lock = threading.Lock()
    _client = None
    _descriptors.clear()


os.register_at_fork(after_in_child=_after_fork)
