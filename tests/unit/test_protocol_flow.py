"""Flow control: the budget's share, the backlog, lag, and the cluster's credit for full subscribers."""

from __future__ import annotations

from ocfcluster import limits
from ocfcluster.protocol.flow import Flow

MIB = 1 << 20
PACKET = 1400
MS = 1_000_000
SECOND = 1000 * MS


def flow(window: int = 8 * MIB, backlog: int = 64 * MIB) -> Flow:
    return Flow(window, backlog, PACKET, 0)


def test_the_budget_is_shared_among_active_origins() -> None:
    one = flow()
    assert one.window(0, 0, 0, False) == 8 * MIB
    for node_id in (1, 2, 3, 4):
        one.ordered(node_id, 1, 0)
    assert one.window(0, 0, 0, False) == 2 * MIB
    later = limits.FLOW_ACTIVE_NS + limits.FLOW_ADAPT_NS
    one.ordered(1, 1, later)
    assert one.window(later, 0, 0, False) == 8 * MIB


def test_the_smallest_receive_buffer_is_the_ceiling() -> None:
    one = flow()
    one.set_receive_buffer(2 * MIB)
    assert one.window(0, 0, 0, False) == MIB
    one.set_receive_buffer(0)
    assert one.window(0, 0, 0, False) == PACKET  # open: never below one packet


def test_retransmissions_halve_the_budget_down_to_the_floor_and_calm_brings_it_back() -> None:
    one, now = flow(), 0
    for _ in range(50):
        now += limits.FLOW_ADAPT_NS
        one.ordered(1, 100, now)
        one.retransmitted(3)
        one.window(now, 0, 0, False)
    assert one.window(now, 0, 0, False) == limits.FLOW_FLOOR_BYTES
    before = limits.FLOW_FLOOR_BYTES
    for _ in range(20):
        now += limits.FLOW_ADAPT_NS
        one.ordered(1, 100, now)
        one.retransmitted(2)  # few enough
        assert one.window(now, 0, 0, False) >= before
        before = one.window(now, 0, 0, False)
    assert before == 8 * MIB


def test_a_small_receive_buffer_lies_below_the_floor() -> None:
    one, now = flow(), 0
    one.set_receive_buffer(limits.RECEIVE_BUFFER_FLOOR_BYTES)
    for _ in range(50):
        now += limits.FLOW_ADAPT_NS
        one.retransmitted(1)
        one.window(now, 0, 0, False)
    assert one.window(now, 0, 0, False) == limits.RECEIVE_BUFFER_FLOOR_BYTES // 2


def test_a_full_backlog_closes_until_a_quarter_is_free() -> None:
    one = flow(backlog=MIB)
    assert one.window(0, MIB - 1, 0, False) > 0
    assert one.window(0, MIB, 0, False) == 0
    assert "backlog" in one.closed_because
    assert one.window(0, MIB * 3 // 4 + 1, 0, False) == 0
    assert one.window(0, MIB * 3 // 4, 0, False) > 0
    assert one.closed_because == ""


def test_lag_beyond_a_receive_buffer_closes_until_half_of_it_is_made_good() -> None:
    one = flow()
    one.set_receive_buffer(2 * MIB)
    assert one.window(0, 0, MIB, False) > 0
    assert one.window(0, 0, MIB + 1, False) == 0
    assert one.closed_because == "a member lags"
    assert one.window(0, 0, MIB // 2 + 1, False) == 0
    assert one.window(0, 0, MIB // 2, False) > 0


def test_a_full_subscriber_closes_at_most_for_its_time_in_each_interval() -> None:
    one, closed = flow(), 0
    interval = limits.SLOW_SUBSCRIBER_INTERVAL_NS
    step = 10 * MS
    for now in range(0, interval, step):
        closed += step if one.window(now, 0, 0, True) == 0 else 0
    timeout = limits.SLOW_SUBSCRIBER_TIMEOUT_NS
    assert timeout - step <= closed <= 2 * timeout  # the credit at the start, and what was gained since
    again = sum(step for now in range(interval, 4 * interval, step) if one.window(now, 0, 0, True) == 0)
    assert again <= 3 * timeout


def test_a_subscriber_that_is_free_again_opens_at_once() -> None:
    one = flow()
    assert one.window(0, 0, 0, True) == 0
    assert one.closed_because == "a subscriber is full"
    assert one.window(MS, 0, 0, False) > 0


def test_credit_used_up_does_not_stutter() -> None:
    one, now, changes, was = flow(), 0, 0, False
    for _ in range(6000):
        now += 10 * MS
        closed = one.window(now, 0, 0, True) == 0
        changes += closed != was
        was = closed
    assert changes <= 2 * 60 * SECOND // (limits.SLOW_SUBSCRIBER_INTERVAL_NS // 5) + 2
