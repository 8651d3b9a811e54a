"""Every bound and default of the project, each with the overload or attack it stops.

Sizes end in their unit. Relations between bounds are checked when this module is imported, so a change that
breaks one fails at once and not under load.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
MILLISECOND_NS: Final = 1_000_000
SECOND_NS: Final = 1_000_000_000

# --- names and properties -------------------------------------------------------------------------------------
TOPIC_NAME_BYTES: Final = 255  # the OCF obligation A2; also bounds every message that carries a name
PROPERTY_COUNT: Final = 32  # a filter walks them per run
PROPERTY_KEY_BYTES: Final = 64  # a length of one byte in the table; keys are words
PROPERTY_VALUE_BYTES: Final = 1024  # a property is a label to filter by; the data is in the event
PROPERTIES_BYTES: Final = 4 * KIB  # the whole encoded table of a run
FILTER_DEPTH: Final = 16  # and, or, not within each other: bounds the recursion of whoever walks a filter
FILTER_TERMS: Final = 64  # comparisons in a filter: what one run may cost per subscription
FILTER_BYTES: Final = 16 * KIB  # of a filter as it goes to the agent
FILTER_TEXT_BYTES: Final = 16 * KIB  # of a filter as text
# Tables of properties that a filter remembers its answer for, and the largest of them: some 20 KiB a subscription.
FILTER_CACHE_ENTRIES: Final = 64
FILTER_CACHED_BYTES: Final = 256  # a larger table is not remembered, but looked at each time
CLUSTER_NAME_BYTES: Final = 64  # it is in the state directory, and in every message to a client
CLIENT_NAME_BYTES: Final = 64  # a client chooses it, and status and log repeat it
RESERVED_PREFIX: Final = "oc."  # topics of the cluster's own components: nobody else takes their names
RESERVED_ALIAS_PREFIX: Final = "__OC_EV_"  # the names that draft 0.3 had for the reserved topics
GROUP_PREFIX: Final = "group:"  # names of groups, which are not to be taken by topics

# --- connectivity and components --------------------------------------------------------------------------------
INTERFACE_NAME_BYTES: Final = 15  # the kernel's IFNAMSIZ, without its NUL
INTERFACES_REPORTED: Final = (
    256  # of one node, by index: a host of many containers has hundreds; the rest is counted
)
ADDRESSES_REPORTED: Final = 1024  # of all of them
REPORT_INTERVAL_NS: Final = (
    100 * MILLISECOND_NS
)  # a component tells changes no more often: flapping is coalesced
INTERFACE_LOOK_NS: Final = (
    10 * MILLISECOND_NS
)  # between two looks at the interfaces, whatever the kernel says
VIEWS_UNPLACED: Final = 64  # views that an external membership component has not published; beyond: a gap

# --- frames between an agent and its programs -----------------------------------------------------------------
# One message on an event socket: 5 events of 16 KiB, 2 of 32, 1 of 64, with room for headers and properties. Linux
# keeps up to 83.6 KiB in small allocations (4 pages and 17 fragments); what is larger needs many pages in a row.
FRAME_BYTES: Final = 82 * KIB
FRAME_HEADER_BYTES: Final = 24  # fixed by the format
RECORD_HEADER_BYTES: Final = 56  # fixed by the format
RUN_HEADER_BYTES: Final = 64  # fixed by the format
# A run of several publications fits one frame; a single larger publication is a run of its own, in several frames.
RUN_BYTES: Final = FRAME_BYTES - FRAME_HEADER_BYTES - RECORD_HEADER_BYTES
RUN_COUNT: Final = 32 * KIB  # events in one run; bounds the table of lengths a receiver walks
EVENT_BYTES_DEFAULT: Final = MIB  # an agent puts an event together in memory, of each origin one
EVENT_BYTES_CEILING: Final = 64 * MIB  # what configuration may raise the largest event to
CONTROL_FRAME_BYTES: Final = 256 * KIB  # a request other than a publication; stops claims of gigabytes
# Both are asked of the kernel, which grants net.core.wmem_max at most (208 KiB by default). A burst costs an agent
# about the same whatever it holds, so what fits in a socket meanwhile decides the rate.
EVENT_SOCKET_SEND_BYTES: Final = 416 * KIB  # not taken by a subscriber; a stuck one pins it in the kernel
CONTROL_SOCKET_SEND_BYTES: Final = MIB  # not read by the agent yet, of one program

# --- what one client may hold in an agent ---------------------------------------------------------------------
CLIENTS: Final = (
    1024  # each has two descriptors and some memory before it has said anything: stops a connection flood
)
GREETING_NS: Final = 5 * SECOND_NS  # for a connection to say HELLO: one that never does frees its place
DESCRIPTORS_PER_CLIENT: Final = 3  # its connection, its process, and a subscription
DESCRIPTORS_OF_AGENT: Final = 64  # networks, state directory, loop, snapshots: few of them at a time
SUBSCRIPTIONS_PER_CLIENT: Final = 256  # each is a descriptor of the agent
TOPICS_PER_SUBSCRIPTION: Final = 1024  # each is looked at when the subscription is made and ended
LENT_SOCKETS_UNANSWERED: Final = 64  # descriptors in flight over SCM_RIGHTS: stops a descriptor flood
REQUESTS_UNANSWERED: Final = 256  # pipelined requests of one client
REQUESTS_AT_ONCE: Final = (
    16  # of one client, before others have their turn: a flood of them does not hold up the order
)
SUBSCRIPTION_QUEUE_BYTES: Final = 16 * MIB  # mark at which a subscription is "full"
SUBSCRIPTION_QUEUE_HARD_BYTES: Final = 96 * MIB  # never more: a backlog and a largest event above the mark
SUBSCRIPTION_QUEUES_BYTES: Final = 256 * MIB  # held for all subscriptions together, each run counted once
QUEUED_ITEM_OVERHEAD_BYTES: Final = (
    256  # what a queued record costs beside its bytes: stops floods of empty events
)
# Kept events that are queued at once for a subscription that catches up: what others may publish meanwhile without
# that it is overtaken by the end of what is kept. A pass over so many runs takes about a millisecond.
REPLAY_PORTION_BYTES: Final = MIB
REPLAY_PORTION_RUNS: Final = 512  # in one portion of kept runs: an agent turns to others in between
RECORDS_PER_FRAME: Final = 500  # two buffers each in one sendmsg, and Linux takes 1024
INTAKE_BYTES: Final = 64 * MIB  # publications of all clients that wait for room; beyond: one read of each
SUBSCRIPTION_TICK_NS: Final = (
    SECOND_NS  # so often an agent looks who takes nothing, and tells where filters have got to
)
STUCK_NS: Final = 5 * SECOND_NS  # an event that a program has not taken or finished for so long is told of
STATUS_ENTRIES: Final = (
    256  # clients, and subscriptions, that a status document lists: the longest queues first
)
CONTROL_OUTPUT_BYTES: Final = 8 * MIB  # answers and receipts a client has not read; beyond: disconnected
CONTROL_READ_BYTES: Final = 256 * KIB  # a client reads from its agent at once: thousands of receipts
SLOW_SUBSCRIBER_TIMEOUT_NS: Final = 5 * SECOND_NS  # a full subscription closes the window this long ...
SLOW_SUBSCRIBER_INTERVAL_NS: Final = 30 * SECOND_NS  # ... in each such interval, for the whole cluster

# --- replicated state (all part of the configuration in force) ------------------------------------------------
TOPICS: Final = 16_384  # every node has the whole table in memory, on disk, and in snapshots
RETAINED_BYTES_PER_TOPIC: Final = 64 * MIB  # of events kept for those who begin earlier than now
RETAINED_BYTES: Final = 256 * MIB  # of all topics together, on every node, and in every snapshot
RETAINED_RUN_OVERHEAD_BYTES: Final = (
    256  # what a kept run costs beside its bytes: stops floods of empty events
)
PRINCIPALS_PER_RIGHT: Final = 32  # users and groups that one right of a topic names
PRINCIPAL_BYTES: Final = 64  # of such a name
NAMES_KNOWN: Final = 4096  # users and groups whose ids an agent remembers: no list of names fills its memory
NAMES_ASKED: Final = 1024  # names that wait to be looked up: a name service that hangs gathers no more
NAME_LIFETIME_NS: Final = 60 * SECOND_NS  # then a name is looked up anew when somebody's right depends on it
NAME_UNKNOWN_LIFETIME_NS: Final = 5 * SECOND_NS  # the same for one that is nobody's: it may just be made
NAME_WAIT_NS: Final = 5 * SECOND_NS  # a program waits so long for a look-up; then the name is nobody's to it
COMMANDS_WAITING: Final = (
    4096  # not on their way yet; clients that come back and ask again and again do not pile up
)
PRODUCERS_PER_NODE: Final = 1024  # each is remembered by every node, with its outcomes
PRODUCER_RUNS_UNANSWERED: Final = 256  # also the outcomes remembered of each producer (exactly once)
# Runs ordered since a producer was last met, after which its node may reuse its place for a new one.
PRODUCER_MEMORY_POSITIONS: Final = 1_000_000
PRODUCER_BYTES_UNANSWERED: Final = 8 * MIB  # what a library keeps to send it again
GROUPS: Final = 4096  # in use, or used lately; one more takes the place of one without members
GROUP_MEMBERS: Final = 1024  # of one group: each JOIN and LEAVE carries them all, 16 bytes each
MEMBERSHIPS_PER_NODE: Final = 1024  # in all groups; bounds the LEAVEs that the loss of a node brings
# CLOSEs and LEAVEs that wait beyond COMMANDS_WAITING, one of each producer and membership: what programs give up is
# given up whatever else waits, and saying so again and again takes no more.
FAREWELLS_WAITING: Final = PRODUCERS_PER_NODE + MEMBERSHIPS_PER_NODE
HISTORIES_REMEMBERED: Final = 8  # cluster_ids that a configuration says it supersedes
EPOCHS_REMEMBERED: Final = 4  # (epoch, base) in a configuration: who is further behind begins anew
VIEWS_UNHELD: Final = 16  # whose base this node does not hold: what is so far behind begins anew
EARLY_ORDERS: Final = (
    64  # ORDERs of the next epoch kept while its configuration goes to disk; more are asked for
)
NODES: Final = 64  # whom a node hears fits one heartbeat of 1500 bytes
NODE_ID_MOST: Final = 0xFFFF_FFFF  # a field of 32 bits
VOTES_MOST: Final = 255  # sums stay small; more than a few are a mistake

# --- datagrams ------------------------------------------------------------------------------------------------
CLEAR_HEADER_BYTES: Final = 32  # fixed by the format
SEAL_BYTES: Final = 16  # an AEAD tag; its room is left free in every datagram
KEYS: Final = 4  # keys that a node accepts: an old one and a new one, and room for a mistake
KEY_FILE_BYTES: Final = 16 * KIB  # a key file is read whole
KEY_REPORT_NS: Final = SECOND_NS  # a node tells the others so often which keys it has
KEY_REPORT_OLD_NS: Final = 5 * SECOND_NS  # what was told longer ago may not be so any more
OPENERS: Final = 512  # prefixes of sealed datagrams that are known: a few per incarnation of each node
MTU_MINIMUM: Final = (
    1280  # interface MTU (with IP and UDP headers): a configuration of 14 nodes fits a datagram
)
MTU_MAXIMUM: Final = 9000  # jumbo frames; loopback's 65 536 is cut to this
TOLD_AGAIN_NS: Final = 10 * SECOND_NS  # trouble that others can make without end is in the log no more often
DATAGRAM_BYTES: Final = 65_507  # the largest UDP payload over IPv4
SEGMENT_COUNT: Final = 64  # datagrams of one UDP_SEGMENT send (the kernel's UDP_MAX_SEGMENTS of old)
SEGMENT_BUFFER_BYTES: Final = 65_000  # bytes of one UDP_SEGMENT send; the kernel's end is 65 507
RECEIVE_BURST: Final = 32  # buffers read from a socket before what they bring is worked off
REPLAY_WINDOW: Final = 65_536  # counters remembered per sender; more than the skew of redundant networks
NETWORKS: Final = 4  # of one node; every packet is sent, and received, once on each
NACK_RANGES: Final = 64  # ranges in one NACK
RETRANSMIT_BYTES: Final = 256 * KIB  # answered to one NACK; the rest is asked for again
OUT_OF_ORDER_BYTES: Final = 16 * MIB  # packets kept per origin behind a gap; beyond: dropped, asked for later
OUT_OF_ORDER_ENTRIES: Final = 65_536  # order entries kept behind a gap
OUT_OF_ORDER_ORDERS: Final = 4096  # ORDER messages kept behind a gap

# --- timing ---------------------------------------------------------------------------------------------------
HEARTBEAT_NS: Final = 100 * MILLISECOND_NS  # ten datagrams a second of each node: small beside any traffic
HEARTBEAT_PADDED_EVERY: Final = 10  # one in ten fills the mtu: shows links that pass only small datagrams
SUSPICION_NS: Final = (
    SECOND_NS  # a busy machine keeps no process waiting so long; publishing stands for it after a crash
)
SYNC_TIMEOUT_NS: Final = 2 * SECOND_NS  # without progress of the members that fetch up to a proposed cut
LEAVE_TIMEOUT_NS: Final = (
    5 * SECOND_NS
)  # a node that was told to stop waits so long for the others to let it go
QUORUM_LOST_AFTER_NS: Final = SECOND_NS  # past the suspicion: then programs are told that this is no primary
HISTORY_WAIT_NS: Final = 30 * SECOND_NS  # for the rest of a configuration before its history is declared lost
NACK_DELAY_NS: Final = MILLISECOND_NS  # a reordered packet arrives within it and is not asked for
AUDIT_EVERY: Final = 1024  # indexes between two checkpoints of the order auditor
AUDIT_CHECKPOINTS: Final = 64  # remembered: as far as nodes that hear each other are apart
SLEEP_MEMORY_NS: Final = 3600 * SECOND_NS  # whom a node heard before it slept longer, it has to hear anew
PREPARE_FIRST_NS: Final = (
    10 * MILLISECOND_NS
)  # an unanswered PREPARE, SYNC or ACCEPT is said again after it ...
PREPARE_MAX_NS: Final = 320 * MILLISECOND_NS  # ... doubled per try up to this
PROMISE_WAIT_NS: Final = 100 * MILLISECOND_NS  # with enough promises, for those of the others that are heard
PROPOSE_RANK_NS: Final = 150 * MILLISECOND_NS  # each younger node waits so much longer before it proposes
JOIN_WAIT_NS: Final = SECOND_NS  # a joiner that is ready waits for others: one view for a merge
READMISSION_MAX_NS: Final = 10 * SECOND_NS  # the longest that a node with a bad link has to show it good
BACKLOG_GRACE_NS: Final = 10 * SECOND_NS  # a member that keeps the backlog full so long is removed
LEARNER_GRACE_NS: Final = (
    6 * SECOND_NS
)  # a joiner for which it is full so long is given up: before others say NOT_PRIMARY
LEARNER_REFUSED_NS: Final = 60 * SECOND_NS  # nothing is kept for that node then; doubled per time ...
LEARNER_REFUSED_MAX_NS: Final = 600 * SECOND_NS  # ... up to this
RESIGN_NS: Final = 2 * SECOND_NS  # a sequencer whose order is not committed for so long gives up its work
JOIN_LAG_PACKETS: Final = (
    256  # a learner no further behind is ready: an epoch change takes longer than to catch up
)
NACK_RETRY_NS: Final = 10 * MILLISECOND_NS  # doubled per try up to NACK_RETRY_MAX_NS
NACK_RETRY_MAX_NS: Final = 160 * MILLISECOND_NS  # what does not come is asked for no more often than that
ORDER_TIME_SLEW: Final = 2000  # order_time follows the wall clock by one part in so many
PERSIST_RETRY_NS: Final = SECOND_NS  # after a failed write of the state directory
PROBE_NS: Final = 10 * MILLISECOND_NS  # without progress for so long, what was said last is said again
NACK_DATAGRAMS: Final = 16  # in one round of asking
RETRANSMIT_HOLD_NS: Final = 4 * MILLISECOND_NS  # a second asker within it makes the answer a multicast
RECEIPT_TICK_NS: Final = 10 * MILLISECOND_NS  # a client's thread reads streaming receipts so often ...
RECEIPT_QUIET_TICKS: Final = 10  # ... until none has come for so many times; then the first wakes it at once
RECONNECT_FIRST_NS: Final = (
    20 * MILLISECOND_NS
)  # a client's first try after its agent went; doubled per try ...
RECONNECT_MAX_NS: Final = (
    SECOND_NS  # ... up to this, so that a thousand clients do not storm a starting agent
)
HANDLE_EVENT_NS: Final = 100 * MILLISECOND_NS  # oc_ev_handle_event returns after it though more keeps coming
LONGEST_TIMEOUT_S: Final = 2_000_000  # 23 days: poll() counts milliseconds in 31 bits
CLOSE_FLUSH_NS: Final = 5 * SECOND_NS  # what a client gives its unanswered publications when it closes
NETWORK_RETRY_NS: Final = 5 * SECOND_NS  # between two tries to open a network that is not there
SHORTAGE_RETRY_NS: Final = SECOND_NS  # after what failed for want of descriptors
HOOK_NS: Final = 10 * SECOND_NS  # a hook's command that hangs would hold up what it is told next

# --- snapshots --------------------------------------------------------------------------------------------------
SNAPSHOT_REQUEST_BYTES: Final = 4 * KIB  # what a node asks with; more is no node
SNAPSHOT_BYTES: Final = 1024 * MIB  # taken from a giver; see _check for what must fit
SNAPSHOT_PIECE_BYTES: Final = 256 * KIB  # read or written before other events of the loop have their turn
STREAM_PIECE_BYTES: Final = (
    256 * KIB
)  # sealed at once: 60 µs of the loop, and what is kept of a piece until it opens
SNAPSHOT_BUFFERS: Final = 512  # in one sendmsg; Linux takes 1024
SNAPSHOTS_AT_ONCE: Final = 4  # given to others: each holds up to a backlog in memory
SNAPSHOT_CONNECTIONS: Final = 16  # accepted, those that have not said yet what they want included
SNAPSHOT_REQUEST_NS: Final = 2 * SECOND_NS  # for a connection to say what it wants
SNAPSHOT_STALL_NS: Final = 3 * SECOND_NS  # without a byte; then the joiner asks another node
LISTEN_TRIES: Final = 16  # free UDP ports that are tried until one's number is free for TCP, too

# --- an evicted node comes back -----------------------------------------------------------------------------------
REJOIN_FIRST_NS: Final = 200 * MILLISECOND_NS  # before the next incarnation; doubled per eviction ...
REJOIN_MAX_NS: Final = 5 * SECOND_NS  # ... up to this, so that a bad link does not busy the others ...
REJOIN_CALM_NS: Final = 30 * SECOND_NS  # ... and from the beginning after an incarnation that lasted so long

# --- flow -----------------------------------------------------------------------------------------------------
WINDOW_BYTES: Final = 8 * MIB  # never above, per origin, not yet committed
FLOW_FLOOR_BYTES: Final = 512 * KIB  # losses that are not overload must not throttle further than this
FLOW_ADAPT_NS: Final = 50 * MILLISECOND_NS  # between two changes of the budget
FLOW_ACTIVE_NS: Final = 200 * MILLISECOND_NS  # an origin that was ordered within it gets a share
ACKNOWLEDGE_BYTES: Final = 128 * KIB  # held and not acknowledged, where nobody waits for it
ANNOUNCE_BYTES: Final = 256 * KIB  # ordered since commit was last told: then it is told without a passenger
RESPONSIVE_NS: Final = 300 * MILLISECOND_NS  # a member heard within it is waited for when it lags
CONTROL_RESERVE_BYTES: Final = (
    256 * KIB
)  # in flight beyond a closed window: rests of begun runs, control runs
SEND_BURST: Final = 16  # buffers sent before what has come in is looked at again
BACKLOG_BYTES: Final = 64 * MIB  # not yet stable, all origins together
EXTENT_OVERHEAD_BYTES: Final = 400  # of the backlog, what an extent costs beside its data: lone small events
RECEIVE_BUFFER_BYTES: Final = 16 * MIB  # asked of the kernel; less is granted where net.core.rmem_max says so
RECEIVE_BUFFER_FLOOR_BYTES: Final = 212_992  # below it the agent refuses to start: one burst overruns it
DATAGRAM_COST_BYTES: Final = 2304  # what the kernel counts at least for a datagram that is not segmented
SEND_BUFFER_BYTES: Final = 8 * MIB  # asked of the kernel: a whole window may wait for a slow link
HEAP_KEEP_BYTES: Final = 64 * MIB  # freed memory that an agent keeps: one backlog's worth, not more
HEAP_GROW_BYTES: Final = 4 * MIB  # the heap grows in such steps
HEAP_OBJECT_BYTES: Final = 4 * MIB  # larger objects come and go by themselves


def _check(condition: bool, relation: str) -> None:
    if not condition:
        raise RuntimeError(f"limits.py: {relation} no longer holds")


_check(RUN_BYTES > PROPERTIES_BYTES + RUN_HEADER_BYTES, "a run has room beside its properties")
_check(SEGMENT_BUFFER_BYTES <= DATAGRAM_BYTES, "a segmented send fits one kernel buffer")
_check(OPENERS >= 4 * 2 * NODES, "two incarnations of every node are known, in two histories, under two keys")
_check(KEY_REPORT_OLD_NS >= 3 * KEY_REPORT_NS, "a lost key report is not taken for a missing key")
_check(EVENT_BYTES_DEFAULT <= EVENT_BYTES_CEILING <= BACKLOG_BYTES, "one largest event fits the backlog")
_check(
    SUBSCRIPTION_QUEUE_HARD_BYTES >= SUBSCRIPTION_QUEUE_BYTES + BACKLOG_BYTES,
    "what may be on its way fits above the mark of a full subscription",
)
_check(
    SUBSCRIPTION_QUEUES_BYTES >= 2 * SUBSCRIPTION_QUEUE_HARD_BYTES,
    "one subscription at its hard mark does not cost the others their queues",
)
_check(2 * RECORDS_PER_FRAME + 1 <= 1024, "a frame's buffers fit one sendmsg")
_check(HEARTBEAT_NS * 4 <= SUSPICION_NS, "several heartbeats fit the suspicion time")
_check(
    SNAPSHOT_BYTES
    >= BACKLOG_BYTES
    + NODES * EVENT_BYTES_DEFAULT
    + NODES * PRODUCERS_PER_NODE * PRODUCER_RUNS_UNANSWERED * 32
    + TOPICS * 2 * TOPIC_NAME_BYTES
    + GROUPS * 2 * TOPIC_NAME_BYTES
    + NODES * MEMBERSHIPS_PER_NODE * 64
    + RETAINED_BYTES,
    "a snapshot has room for a backlog, an unfinished run per node, all outcomes that are remembered, all topics and"
    " what is kept of them, and all groups",
)
_check(
    RETAINED_BYTES_PER_TOPIC >= EVENT_BYTES_CEILING and RETAINED_BYTES >= 4 * RETAINED_BYTES_PER_TOPIC,
    "a largest event can be kept, and several topics as much as one may",
)
_check(
    REPLAY_PORTION_BYTES + EVENT_BYTES_CEILING < SUBSCRIPTION_QUEUE_HARD_BYTES,
    "a portion of kept events fits the queue of a subscription",
)
_check(GROUP_MEMBERS * 2 * 16 + 256 <= RUN_BYTES, "a change of the largest group is a run of ordinary size")
_check(REJOIN_FIRST_NS <= REJOIN_MAX_NS < REJOIN_CALM_NS, "the back-off of a node that rejoins grows")
_check(FRAME_BYTES * 2 < EVENT_SOCKET_SEND_BYTES, "two frames fit an event socket")
