"""``ocfcluster connectivity``: who hears whom, each node's interfaces, and with ``--watch`` how that changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ocfcluster.cli import options, output

if TYPE_CHECKING:
    from ocfcluster.client import Subscription
    from ocfcluster.client.events import Event
    from ocfcluster.components.connectivity import Connectivity, Interface

_SETTLED_S = 0.05  # what is current comes with the start of a subscription


def show_connectivity(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="What is current, then each change, until Ctrl-C.")
    ] = False,
    json: options.Json = False,
    socket: options.Socket = None,
) -> None:
    """Show who hears whom among the nodes, which of them are eligible, and their network interfaces.

    The table has a row for each node that hears and a column for each that is heard: yes, no, or ? where it has not
    said. With --watch one line per event of oc.connectivity. It outlives a restart of the agent.

    Example: ocfcluster connectivity --watch --json
    """
    from ocfcluster.components.connectivity import TOPIC

    with options.connect(context, socket, resume=watch) as client, client.subscribe(TOPIC) as subscription:
        if watch:
            for event in subscription:
                output.print_json(document(event)) if json else output.print_line(line(event))
        elif json:
            output.print_json(state_document(current(subscription)))
        else:
            _print(current(subscription))


def current(subscription: Subscription) -> Connectivity:
    """What is current at the start of a subscription."""
    from ocfcluster.components.connectivity import Connectivity, ConnectivityEvent
    from ocfcluster.errors import Malformed
    from ocfcluster.wire.frames import RecordFlags

    state = Connectivity()
    while (event := subscription.get(timeout=_SETTLED_S)) is not None and RecordFlags.RETAINED in event.flags:
        try:
            state.take(ConnectivityEvent.decode(event.data))
        except Malformed:  # of a node of a later version
            continue
    return state


def _print(state: Connectivity) -> None:
    if not state.links and not state.interfaces:
        output.tell("no node has reported yet")
        return
    networks = sorted({network for _, _, network in state.links}) or [0]
    for network in networks:
        headings, rows = matrix(state, network)
        if len(networks) > 1:
            output.print_line(f"network {network}")
        output.print_table(headings, rows)
    output.print_line("")
    output.print_table(("node", "interface", "state", "mtu", "cluster", "addresses"), list(interfaces(state)))


def matrix(state: Connectivity, network: int) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of who hears whom."""
    nodes = sorted({*state.eligible, *(node for key in state.links for node in key[:2])})
    rows = []
    for hearer in nodes:
        cells = []
        for heard in nodes:
            link = state.links.get((hearer, heard, network))
            known = "?" if link is None else "yes" if link.state & 1 else "no"
            cells.append("-" if hearer == heard else known)
        votes = state.eligible.get(hearer)
        rows.append([str(hearer), *cells, "not eligible" if votes is None else str(votes)])
    return ["hears", *map(str, nodes), "votes"], rows


def interfaces(state: Connectivity) -> list[list[str]]:
    """Rows of the table of interfaces."""
    return [
        [
            str(node_id), output.printable(one.name), word(one), str(one.mtu), "yes" if one.state & 16 else "",
            ", ".join(map(str, one.addresses)),
        ]
        for node_id, those in sorted(state.interfaces.items())
        for one in those
    ]  # fmt: skip


def word(interface: Interface) -> str:
    """What an interface is, for people."""
    if interface.healthy:
        return "up"
    return "no carrier" if interface.state & 1 else "down"


def state_document(state: Connectivity) -> dict[str, Any]:
    """What is current as plain values."""
    return {
        "eligible": [{"node_id": node, "votes": votes} for node, votes in sorted(state.eligible.items())],
        "links": [output.link_document(link) for _, link in sorted(state.links.items())],
        "interfaces": [
            {"node_id": node_id, **output.interface_document(one)}
            for node_id, those in sorted(state.interfaces.items())
            for one in those
        ],
    }


def line(event: Event) -> str:
    """An event of oc.connectivity, or a notice, for people."""
    if event.notice is not None:
        return output.event_line(event)
    return output.connectivity_text(event.data) + (" (here alone)" if event.local else "")


def document(event: Event) -> dict[str, Any]:
    """An event of oc.connectivity as plain values, or a notice with the key ``notice``."""
    from ocfcluster.wire.frames import RecordFlags

    if event.notice is not None:
        return output.event_document(event)
    return {
        **output.connectivity_document(event.data),
        "seq": event.seq, "ev_id": event.ev_id, "local": event.local,
        "retained": RecordFlags.RETAINED in event.flags,
    }  # fmt: skip
