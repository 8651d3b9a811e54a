"""The oracle over traces finds what it is there to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from ocfcluster.simulator.trace import Violation
from tests.netns.oracle import Verdict, check, published
from tests.netns.traces import Answer, Began, Got, Line, Membership, Told, Writer, read
from tests.netns.worker import payload

TOPICS = ["red", "blue"]
SIZE = 64
EVENTS = 12  # of each of two publishers
MEMBERS = ((1, 1), (2, 1), (3, 1))
Lines = dict[str, list[Line]]  # by file


def digest(publisher: int, number: int) -> int:
    return xxh3_64_intdigest(payload(publisher, number, SIZE))


def membership(m_sequence: int, ev_id: int, members: Any, joined: Any, left: Any = ()) -> Membership:
    return Membership(
        0, "NEW_MEMBERSHIP", m_sequence, ev_id, m_sequence, ev_id, members, joined, left, local=False, retained=False
    )  # fmt: skip


def local(code: str, m_sequence: int) -> Membership:
    return Membership(
        0, code, m_sequence, 1 << 63, m_sequence, 0, MEMBERS, (), (), local=True, retained=False
    )


def a_run() -> Lines:
    """What a good run leaves: node 2 is out for the second third of it, node 1's agent is restarted for the last."""
    everything: list[Line] = [membership(1, 1, MEMBERS, MEMBERS)]
    answers: dict[int, list[Line]] = {1: [], 3: []}
    seqs = dict.fromkeys(TOPICS, 0)
    incarnations = {1: 101, 3: 103}
    m_sequence = 1
    for number in range(EVENTS):
        if number == 4:
            m_sequence = 2
            everything.append(membership(2, len(everything) + 1, ((1, 1), (3, 1)), (), ((2, 1),)))
        elif number == 8:
            m_sequence = 3
            incarnations[1] = 201
            everything.append(
                membership(3, len(everything) + 1, ((3, 1), (1, 3), (2, 3)), ((1, 3), (2, 3)), ((1, 1),))
            )
        for publisher in (1, 3):
            topic = TOPICS[number % 2]
            seqs[topic] += 1
            ev_id = len(everything) + 1
            everything.append(
                Got(
                    0, topic, seqs[topic], ev_id, publisher, incarnations[publisher], m_sequence, ev_id,
                    70 + publisher, number + 1, (digest(publisher, number),),
                )
            )  # fmt: skip
            answers[publisher].append(Answer(number, 1, topic, seqs[topic], ev_id, ""))
    began = Began(0, dict.fromkeys([*TOPICS, "oc.membership"], 1))
    out = [index for index, line in enumerate(everything) if isinstance(line, Membership)]
    absent = [line for line in everything[out[1] + 1 : out[2]] if isinstance(line, Got)]
    gaps: list[Line] = []
    for topic in TOPICS:
        missed = [line.seq for line in absent if line.topic == topic]
        gaps.append(Told(0, "gap", topic, missed[0], missed[-1], "away", final=False))
    second = [
        began, *everything[: out[1]], local("NOT_PRIMARY", 1), Told(0, "agent_lost", "", 0, 0, "", final=False),
        *gaps, Told(0, "gap", "oc.membership", 2, 2, "away", final=False),
        Told(0, "resumed", "", 0, 0, "", final=False), *everything[out[2] :],
    ]  # fmt: skip
    third = [
        began, *everything[:5], local("NOT_PRIMARY", 1), local("PRIMARY_RESTORED", 1), *everything[5:],
    ]  # fmt: skip
    return {
        "1": [began, *everything], "2": second, "3": third, "a1": answers[1], "a3": answers[3],
    }  # fmt: skip


def judge(lines: Lines, directory: Path) -> Verdict:
    for name, written in lines.items():
        with Writer(directory / name) as writer:
            for line in written:
                writer.write(line)
    known = published(
        (((one, number), payload(one, number, SIZE)) for one in (1, 3) for number in range(EVENTS)),
        {1: 1, 3: 3},
    )
    return check(
        {node: directory / str(node) for node in (1, 2, 3)}, TOPICS, known,
        {publisher: directory / f"a{publisher}" for publisher in (1, 3)},
    )  # fmt: skip


def test_a_good_run_passes(tmp_path: Path) -> None:
    verdict = judge(a_run(), tmp_path)
    assert (verdict.events, verdict.views) == (2 * EVENTS, 3)
    assert verdict.missed == {1: 0, 2: 9, 3: 0}
    assert verdict.notifications == {
        1: [], 2: ["NOT_PRIMARY"], 3: ["NOT_PRIMARY", "PRIMARY_RESTORED"],
    }  # fmt: skip


def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Writer(path) as writer:
        writer.write(Began(5, {"red": 1}))
    with path.open("ab") as file:
        file.write(b'["notice",7,"ga')
    assert list(read(path)) == [Began(5, {"red": 1})]


# --- one thing wrong at a time ----------------------------------------------------------------------------------------


def got(lines: list[Line], at: int) -> int:
    """The index of the ``at``-th run."""
    return [index for index, line in enumerate(lines) if isinstance(line, Got)][at]


def change(lines: Lines, at: int, *names: str, **fields: Any) -> None:
    """Fields of the ``at``-th run, on all nodes unless ``names``."""
    for name in names or ("1", "2", "3"):
        index = got(lines[name], at)
        lines[name][index] = replace(lines[name][index], **fields)


def lose_one_on_one_node(lines: Lines) -> None:
    del lines["3"][got(lines["3"], 5)]


def lose_one_everywhere(lines: Lines) -> None:
    """The last but one of a topic, and nothing shows it but ev_id: a gap is announced on every node."""
    for name in ("1", "2", "3"):
        index = got(lines[name], 5)
        line = lines[name][index]
        assert isinstance(line, Got)
        lines[name][index] = Told(0, "gap", line.topic, line.seq, line.seq, "", final=False)


def swap_two_on_one_node(lines: Lines) -> None:
    trace = lines["1"]
    one, two = got(trace, 1), got(trace, 2)  # of different topics
    trace[one], trace[two] = trace[two], trace[one]


def differ_in_data(lines: Lines) -> None:
    change(lines, 3, "3", digests=(digest(1, 9),))


def differ_in_the_order_time(lines: Lines) -> None:
    change(lines, 3, "2", order_time=1)


def deliver_twice(lines: Lines) -> None:
    change(lines, 2, digests=(digest(1, 0),))


def swap_two_of_a_publisher_everywhere(lines: Lines) -> None:
    change(lines, 0, digests=(digest(1, 1),))
    change(lines, 2, digests=(digest(1, 0),))


def invent_one(lines: Lines) -> None:
    change(lines, 2, digests=(4711,))


def come_from_another_node(lines: Lines) -> None:
    change(lines, 2, node_id=3)


def use_numbers_twice(lines: Lines) -> None:
    change(lines, 2, number=1)


def come_from_a_member_that_was(lines: Lines) -> None:
    """Node 1 was restarted, and its old incarnation goes on."""
    change(lines, -4, incarnation=101)


def be_of_another_membership(lines: Lines) -> None:
    change(lines, 6, m_sequence=2)


def go_back_in_time(lines: Lines) -> None:
    change(lines, 6, order_time=2)


def announce_no_gap(lines: Lines) -> None:
    lines["2"] = [line for line in lines["2"] if not (isinstance(line, Told) and line.topic == "blue")]


def announce_too_little(lines: Lines) -> None:
    for index, line in enumerate(lines["2"]):
        if isinstance(line, Told) and line.topic == "red":
            lines["2"][index] = replace(line, last_seq=line.last_seq - 1)


def announce_what_came(lines: Lines) -> None:
    for index, line in enumerate(lines["2"]):
        if isinstance(line, Told) and line.topic == "red":
            lines["2"][index] = replace(line, first_seq=line.first_seq - 1)


def miss_a_view(lines: Lines) -> None:
    lines["3"] = [line for line in lines["3"] if not (isinstance(line, Membership) and line.m_sequence == 2)]


def see_another_view(lines: Lines) -> None:
    for index, line in enumerate(lines["3"]):
        if isinstance(line, Membership) and line.m_sequence == 2:
            lines["3"][index] = replace(line, members=((1, 1), (2, 1)))


def change_all_views(m_sequence: int, **fields: Any) -> Callable[[Lines], None]:
    def change_them(lines: Lines) -> None:
        for name in ("1", "2", "3"):
            for index, line in enumerate(lines[name]):
                if isinstance(line, Membership) and line.m_sequence == m_sequence and not line.local:
                    lines[name][index] = replace(line, **fields)

    change_them.__name__ = "views_" + "_".join(fields)
    return change_them


def begin_the_history_anew(lines: Lines) -> None:
    lines["1"].insert(9, Told(0, "history_lost", "", 0, 4, "", final=True))


def go_on_behind_the_end(lines: Lines) -> None:
    lines["1"].insert(9, Told(0, "shutdown", "", 0, 0, "", final=True))


def restore_what_was_not_lost(lines: Lines) -> None:
    lines["1"].insert(4, local("PRIMARY_RESTORED", 1))


def tell_twice_that_it_is_not_primary(lines: Lines) -> None:
    index = next(
        index for index, line in enumerate(lines["2"]) if isinstance(line, Membership) and line.local
    )
    lines["2"].insert(index, lines["2"][index])


def lie_in_a_receipt(lines: Lines) -> None:
    lines["a1"][4] = replace(lines["a1"][4], seq=1)


def leave_a_receipt_out(lines: Lines) -> None:
    lines["a1"].pop()


def refuse_one(lines: Lines) -> None:
    lines["a3"][4] = Answer(4, 1, "", 0, 0, "OutcomeUnknown: who knows")


def lose_the_last(lines: Lines) -> None:
    for name in ("1", "2", "3"):
        lines[name].pop()


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lose_one_on_one_node, "seq"),
        (lose_one_everywhere, "ev_id"),
        (lose_the_last, "lost"),
        (swap_two_on_one_node, "agreement"),
        (differ_in_data, "agreement"),
        (differ_in_the_order_time, "agreement"),
        (deliver_twice, "exactly once"),
        (swap_two_of_a_publisher_everywhere, "fifo"),
        (invent_one, "creation"),
        (come_from_another_node, "creation"),
        (use_numbers_twice, "exactly once"),
        (come_from_a_member_that_was, "membership"),
        (be_of_another_membership, "membership"),
        (go_back_in_time, "order time"),
        (announce_no_gap, "seq"),
        (announce_too_little, "seq"),
        (announce_what_came, "gap"),
        (miss_a_view, "seq"),
        (see_another_view, "agreement"),
        (change_all_views(2, left=()), "views"),
        (change_all_views(3, members=((3, 1), (2, 3), (1, 3))), "views"),
        (change_all_views(3, joined=((1, 3),)), "views"),
        (change_all_views(3, members=((3, 1), (1, 2), (2, 3))), "views"),
        (begin_the_history_anew, "history"),
        (go_on_behind_the_end, "subscription"),
        (restore_what_was_not_lost, "notifications"),
        (tell_twice_that_it_is_not_primary, "notifications"),
        (lie_in_a_receipt, "receipts"),
        (leave_a_receipt_out, "receipts"),
        (refuse_one, "receipts"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_is_wrong_is_found(spoil: Callable[[Lines], None], rule: str, tmp_path: Path) -> None:
    lines = a_run()
    spoil(lines)
    with pytest.raises(Violation) as found:
        judge(lines, tmp_path)
    assert found.value.rule == rule, found.value
