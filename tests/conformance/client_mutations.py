"""Mistakes in how the library and the OCF API subscribe and take events, patched into the process of a check."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Any

from ocfcluster import ocf
from ocfcluster.client import client as client_module
from ocfcluster.client.client import Subscription
from ocfcluster.client.connection import Connection
from ocfcluster.client.dispatch import Dispatcher, Entry
from ocfcluster.client.events import Event
from ocfcluster.client.eventsocket import EventSocket
from ocfcluster.client.producer import Producer
from ocfcluster.errors import (
    AgentUnreachable,
    InvalidArgument,
    NoSubscription,
    TooLarge,
    UnknownTopic,
)
from tests.conformance.mutation import Mutation, Side, collector, wrap

MUTATIONS: list[Mutation] = []
mutation = collector(MUTATIONS, Side.CLIENT)


# --- A1 to A4: subscribing ----------------------------------------------------------------------------------------


@mutation("A1", "descriptors_are_distinct", "subscriptions_are_independent")
def same_topic_gives_the_same_descriptor() -> None:
    """Subscribing to a topic a second time gives the descriptor of the first."""
    known: dict[str, int] = {}

    def subscribe(original: Any, topic: str, fn: Any = None, **earlier: Any) -> int:
        if topic not in known:
            known[topic] = original(topic, fn, **earlier)
        return known[topic]

    wrap(ocf, "oc_ev_subscribe", subscribe)


@mutation("A2", "unknown_topic_is_refused")
def subscribing_creates_the_topic() -> None:
    """Subscribing to a topic that nobody made makes it."""

    def subscribe(original: Any, topic: str, fn: Any = None) -> int:
        try:
            return int(original(topic, fn))
        except UnknownTopic:
            ocf.oc_ev_topic_create(topic)
            return int(original(topic, fn))

    wrap(ocf, "oc_ev_subscribe", subscribe)


@mutation("A2", "bad_names_are_refused")
def bad_names_have_another_errno() -> None:
    """A name that cannot be a topic's gives EMSGSIZE."""

    def check(original: Any, name: str) -> str:
        try:
            return str(original(name))
        except InvalidArgument as error:
            raise TooLarge(str(error)) from None

    wrap(client_module, "check_topic", check)


@mutation("A3", "no_agent_is_said")
def no_agent_is_said_without_its_socket() -> None:
    """The message of ECONNREFUSED does not name the socket that was tried."""
    wrap(AgentUnreachable, "__init__", lambda original, error, _message: original(error, "there is no agent"))


@mutation("A4", "callback_descriptors_are_not_pulled")
def callback_descriptors_can_be_pulled() -> None:
    """get_event takes events of a callback descriptor."""
    wrap(Subscription, "_check_pull", lambda _original, _subscription: None)


@mutation("A4", "callbacks_and_pulls_deliver")
def the_function_is_never_called() -> None:
    """Events of a callback descriptor are done without a call of the program's function."""
    wrap(Dispatcher, "add", lambda original, self, socket, _fn, **named: original(self, socket, ocf.oc_ev_event_done, **named))  # fmt: skip  # noqa: E501


# --- A5 and A6: taking events -------------------------------------------------------------------------------------


@mutation("A5", "one_order_for_all_callbacks")
def descriptors_are_served_in_turn() -> None:
    """Whatever callback descriptor has an event is served, not the one whose event is next in the order."""

    def choose(_original: Any, self: Dispatcher, entries: list[Entry]) -> Entry | None:
        for entry in entries:
            self._look(entry)
            if entry.key is not None and entry.held is None and not entry.removed:
                return entry
        return None

    wrap(Dispatcher, "_choose", choose)


@mutation("A5", "nothing_to_handle")
def nothing_to_handle_is_success() -> None:
    """handle_events gives 0 where no callback subscription was ever made."""

    def handle(original: Any) -> int:
        with contextlib.suppress(NoSubscription):
            return int(original())
        return 0

    wrap(ocf, "oc_ev_handle_events", handle)


@mutation("A5", "changes_inside_callbacks_take_effect", "many_threads_may_handle")
def later_subscriptions_are_not_served() -> None:
    """handle_events serves the subscriptions that were there when it was called."""
    served: list[Entry] = []

    def serve(original: Any, self: Dispatcher, deadline: float | None = None) -> Any:
        served[:] = self._entries.values()
        return original(self, deadline)

    def look(original: Any, self: Dispatcher, entry: Entry) -> None:
        if entry in served:
            original(self, entry)

    wrap(Dispatcher, "serve", serve)
    wrap(Dispatcher, "_look", look)


@mutation("A6", "timeouts")
def timeouts_are_centiseconds() -> None:
    """get_event waits ten times as long as it was told."""
    wrap(ocf, "oc_ev_get_event", lambda original, ed, timeout=-1: original(ed, timeout * 10))


@mutation("A6", "waiting_ends_with_an_event")
def a_negative_timeout_polls() -> None:
    """get_event with a negative timeout returns at once."""
    wrap(ocf, "oc_ev_get_event", lambda original, ed, timeout=-1: original(ed, max(0, timeout)))


# --- A7: the descriptor -------------------------------------------------------------------------------------------


@mutation(
    "A7",
    "readable_exactly_while_events_wait",
    "callback_descriptor_is_truthful",
    "level_triggered_loop_neither_spins_nor_sleeps",
)
def frames_are_taken_off_with_their_first_event() -> None:
    """Events that wait inside the library do not keep the descriptor readable."""

    def load(original: Any, self: EventSocket) -> bool:
        loaded = bool(original(self))
        if self._on_socket:
            self._discard()
            self._on_socket = False
        return loaded

    wrap(EventSocket, "_load", load)


@mutation("A7", "one_descriptor_for_ever")
def each_call_gives_another_descriptor() -> None:
    """get_fd gives a new duplicate each time."""
    wrap(EventSocket, "fileno", lambda original, self: os.dup(original(self)))


@mutation("A7", "signal_on_arrival")
def the_descriptor_is_an_epoll() -> None:
    """What get_fd gives can be polled, but raises no signals."""
    polls: dict[int, Any] = {}

    def fileno(original: Any, self: EventSocket) -> int:
        inner = original(self)
        if inner not in polls:
            polls[inner] = select.epoll()
            polls[inner].register(inner, select.EPOLLIN)
        return int(polls[inner].fileno())

    wrap(EventSocket, "fileno", fileno)


# --- A8 to A10: the life of events and descriptors ----------------------------------------------------------------


@mutation("A8", "events_are_valid_until_done")
def events_end_with_the_callback() -> None:
    """The data of an event is gone when the callback that got it returns."""

    def add(original: Any, self: Dispatcher, socket: EventSocket, fn: Any, **named: Any) -> None:
        def callback(event: Event) -> None:
            fn(event)
            event.data = b""

        original(self, socket, callback, **named)

    wrap(Dispatcher, "add", add)


@mutation("A8", "done_once_and_only_for_events")
def anything_is_done_any_number_of_times() -> None:
    """event_done takes whatever it gets."""

    def done(original: Any, event: Any) -> int:
        with contextlib.suppress(InvalidArgument):
            original(event)
        return 0

    wrap(ocf, "oc_ev_event_done", done)


@mutation("A9", "callbacks_wait_for_done")
def next_event_before_done() -> None:
    """The next callback of a descriptor does not wait for event_done of the one before."""

    def is_held(entry: Entry) -> bool:
        entry.held = None
        return False

    Dispatcher._is_held = staticmethod(is_held)


@mutation("A9", "an_open_event_holds_up_its_own_descriptor_alone")
def an_open_event_holds_up_all_callbacks() -> None:
    """While an event of one callback descriptor is not done, no other is served."""
    wrap(
        Dispatcher,
        "_best",
        lambda original, self, entries: None if any(one.held for one in entries) else original(self, entries),
    )


@mutation("A9", "pulled_events_may_be_many")
def one_pulled_event_at_a_time() -> None:
    """get_event gives nothing while an event of the same descriptor is not done."""

    def get_event(original: Any, ed: int, timeout: int = -1) -> Event | None:
        return None if ocf._of(ed).outstanding else original(ed, timeout)

    wrap(ocf, "oc_ev_get_event", get_event)


@mutation(
    "A10",
    "unsubscribe_ends_delivery",
    "unsubscribe_within_a_callback",
    "unsubscribe_from_another_thread",
    "unknown_descriptors_are_refused",
)
def unsubscribe_does_nothing() -> None:
    """unsubscribe says that it is done, and the subscription goes on."""
    wrap(ocf, "oc_ev_unsubscribe", lambda _original, _ed: 0)


@mutation("A10", "unsubscribe_from_another_thread")
def who_waits_is_not_woken() -> None:
    """unsubscribe leaves a thread that waits for an event of the descriptor asleep."""
    wrap(EventSocket, "_ring", lambda _original, _self: True)


# --- A11 and A12: version, threads, forks -------------------------------------------------------------------------


@mutation("A11", "version_without_an_agent")
def the_version_needs_an_agent() -> None:
    """get_version connects to the agent first."""

    def version(original: Any) -> Any:
        ocf._default_client()
        return original()

    wrap(ocf, "oc_ev_get_version", version)


@mutation("A11", "version_with_an_agent")
def the_agents_version_is_left_out() -> None:
    """get_version never gives the agent's version."""
    wrap(ocf, "oc_ev_get_version", lambda original: original()._replace(agent=None))


@mutation("A12", "one_caller_per_event")
def the_lock_is_given_up_while_taking() -> None:
    """Two threads that take at the same moment may get the same event."""

    def take(_original: Any, self: EventSocket) -> Event | None:
        with self.lock:
            if not self._left and not self._load():
                return None
            run, left = self._run, self._left
            assert run is not None
            event: Event = list(run.events())[len(run) - left]
        time.sleep(0.0001)
        with self.lock:
            if self._run is run and self._left == left:
                self._left = left - 1
                if left == 1:
                    self._finish_run()
        return event

    wrap(EventSocket, "take_event", take)


@mutation("A12", "any_call_from_any_thread")
def descriptors_are_numbered_without_the_lock() -> None:
    """Two threads that subscribe at the same moment get the same event descriptor."""

    def subscribe(_original: Any, topic: str, fn: Any = None) -> int:
        client, subscription = ocf._ask(lambda client: (client, client.subscribe_for(topic, fn, manual=True)))
        ed = ocf._next_descriptor
        time.sleep(0.002)
        ocf._next_descriptor = ed + 1
        ocf._descriptors[ed] = ocf._Descriptor(client, subscription, fn is not None)
        return ed

    wrap(ocf, "oc_ev_subscribe", subscribe)


@mutation("A12", "a_child_is_its_own")
def a_child_goes_on_as_its_parent() -> None:
    """After a fork the child has its parent's descriptors."""

    def nothing() -> None: ...

    # The functions are registered with the interpreter already, so their code is what can be exchanged.
    ocf._after_fork.__code__ = nothing.__code__
    client_module._after_fork.__code__ = nothing.__code__


# --- A13 and A14: the agent goes away; what draft 0.3 had ---------------------------------------------------------


@mutation("A13", "loss_is_told", "callbacks_are_told", "resumed_after_a_restart")
def the_loss_of_the_agent_is_not_told() -> None:
    """Subscriptions of an agent that died wait for ever."""
    wrap(EventSocket, "lose", lambda _original, _self, _notice: False)


@mutation("A13", "publishers_do_not_hang")
def receipts_of_a_lost_agent_stay_open() -> None:
    """What was unanswered when the agent died is never answered."""
    wrap(Producer, "abandon", lambda _original, _self, _error: [])


@mutation("A13", "resumed_after_a_restart")
def an_agent_that_came_back_is_not_noticed() -> None:
    """With resume the library does not connect again."""
    wrap(Connection, "_reconnect", lambda _original, _self: None)


@mutation("A14", "handle_event_never_blocks")
def handle_event_waits_for_an_event() -> None:
    """handle_event returns only when it has called the function."""

    def handle(_original: Any, self: Dispatcher, socket: EventSocket) -> None:
        while not self.dispatch(socket):
            time.sleep(0.01)

    wrap(Dispatcher, "handle", handle)


@mutation("A14", "handle_event_runs_earlier_turns_first")
def handle_event_passes_earlier_turns() -> None:
    """handle_event runs the callbacks of its own descriptor before earlier events of others."""

    def handle(_original: Any, self: Dispatcher, socket: EventSocket) -> None:
        entry = self._entries[socket]
        self._look(entry)
        if entry.key is not None and entry.held is None:
            self._run_frame(entry, None)

    wrap(Dispatcher, "handle", handle)


@mutation("A14", "my_node")
def every_node_is_mine() -> None:
    """is_my_nodeid says yes to every node."""
    wrap(ocf, "oc_ev_is_my_nodeid", lambda _original, _ed, _node: True)


@mutation("A14", "replaced_function")
def the_old_function_stays() -> None:
    """set_on_event does not replace the function."""
    wrap(Dispatcher, "replace", lambda _original, _self, _socket, _callback: None)
