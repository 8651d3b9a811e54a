"""``ocfcluster publish``: lines, text or files into a topic."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from ocfcluster.cli import options, output

if TYPE_CHECKING:
    from ocfcluster.client import Client, Receipt

RECEIPTS_WAITING = 4096  # printed receipts lag behind publishing by no more than this
BATCH = 1024  # events handed to the library in one call where nobody wants them one by one


def run(
    context: typer.Context,
    topic: options.TopicName,
    data: Annotated[str | None, typer.Option(help="Publish this text.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Publish this file's bytes as one event; - is stdin.", show_default=False),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help="Publish --data or --file so often, or at most so many lines.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Events per second; 0: as fast as the cluster takes them.")
    ] = 0.0,
    re_id: Annotated[
        int,
        typer.Option("--re-id", min=0, max=2**64 - 1, help="The ev_id that these events answer; 0: none."),
    ] = 0,
    properties: Annotated[
        list[str] | None, typer.Option("--property", metavar="KEY=VALUE", help="A property; may be repeated.")
    ] = None,
    json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Publish events: each line of stdin, or --data, or --file. Returns when all of them are delivered here.

    With --json each event's receipt is one line: {"topic": ..., "seq": ..., "ev_id": ...}.

    Example: echo hello | ocfcluster publish orders --property urgency=high
    """
    if data is not None and file is not None:
        raise typer.BadParameter("give --data or --file, not both")
    table = parse_properties(properties or [])
    with _opened(file) as source, options.connect(context, socket, resume=True) as client:
        events = _events(data, source, count, client.event_bytes, lines=file is None)
        if rate:
            events = paced(events, rate)
        if json:
            _publish_with_receipts(client, topic, events, re_id, table)
        elif rate or (data is None and file is None):
            _publish_singly(client, topic, events, re_id, table)
        else:
            _publish_in_batches(client, topic, events, re_id, table)


def parse_properties(pairs: Iterable[str]) -> dict[str, str]:
    """``["k=v", ...]`` as a table. Raises BadParameter (exit code 2).

    It does so for a pair without a key or ``=``, and for a key that came before.
    """
    table: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--property")
        if key in table:
            raise typer.BadParameter(f"the key {key!r} is given twice", param_hint="--property")
        table[key] = value
    return table


def _opened(file: Path | None) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if file is None or str(file) == "-" else file.open("rb")


def _events(
    data: str | None, source: BinaryIO, count: int | None, event_bytes: int, *, lines: bool
) -> Iterator[bytes]:
    """What is to be published. Of what is larger than ``event_bytes`` one byte more is read, which is enough to be
    refused: a source need not end."""
    if data is not None:
        return repeat(data.encode("utf-8", "surrogateescape"), count or 1)
    if not lines:
        return repeat(source.read(event_bytes + 1), count or 1)
    events = (line.removesuffix(b"\n") for line in iter(lambda: source.readline(event_bytes + 1), b""))
    return events if count is None else islice(events, count)


def paced(events: Iterable[bytes], rate: float) -> Iterator[bytes]:
    """``events`` at ``rate`` per second, by an absolute schedule: a late one does not delay the rest."""
    start = time.monotonic()
    for number, event in enumerate(events):
        wait = start + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield event


def _publish_singly(
    client: Client, topic: str, events: Iterable[bytes], re_id: int, properties: dict[str, str]
) -> None:
    number, receipt = 0, None
    for number, data in enumerate(events, start=1):  # noqa: B007 - the last number is the count
        receipt = client.publish(topic, data, re_id=re_id, properties=properties)
        if receipt.done():
            receipt.wait()  # raises where it was refused, so that a wrong topic ends the command at once
    _finish(client, topic, number, receipt)


def _publish_in_batches(
    client: Client, topic: str, events: Iterator[bytes], re_id: int, properties: dict[str, str]
) -> None:
    number, receipt = 0, None
    while batch := list(islice(events, BATCH)):
        receipt = client.publish_many(topic, batch, re_id=re_id, properties=properties)
        number += len(batch)
    _finish(client, topic, number, receipt)


def _finish(client: Client, topic: str, number: int, receipt: Receipt | None) -> None:
    client.flush()
    last = receipt.wait() if receipt is not None else None
    place = f", the last under seq {last.seq + last.count - 1}" if last is not None else ""
    output.tell(f"published {number} event{'' if number == 1 else 's'} to {output.printable(topic)}{place}")


def _publish_with_receipts(
    client: Client, topic: str, events: Iterable[bytes], re_id: int, properties: dict[str, str]
) -> None:
    """Receipts are printed by a thread of their own: each as soon as it is there, also while stdin says nothing."""
    waiting: queue.Queue[Receipt | None] = queue.Queue(RECEIPTS_WAITING)
    failures: list[Exception] = []

    def print_receipts() -> None:
        while (receipt := waiting.get()) is not None:
            if failures:
                continue  # the queue is emptied so that the publishing thread never blocks on it
            try:
                published = receipt.wait()
                output.print_json({"topic": published.topic, "seq": published.seq, "ev_id": published.ev_id})
            except Exception as error:  # noqa: BLE001 - raised by the publishing thread
                failures.append(error)

    # A daemon that Ctrl-C does not wait for: the receipts it waits for may never come.
    printer = threading.Thread(target=print_receipts, name="receipts", daemon=True)
    printer.start()
    try:
        for data in events:
            if failures:
                break
            waiting.put(client.publish(topic, data, re_id=re_id, properties=properties))
    except Exception:
        waiting.put(None)
        printer.join()
        raise
    waiting.put(None)
    printer.join()
    if failures:
        raise failures[0]
