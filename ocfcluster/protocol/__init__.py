"""The sans-IO node: everything agents decide together, as a state machine without sockets, clocks or threads.

Contract with the caller (the agent's loop, or the simulator):

- Feed inputs (``Node.datagram``, ``publish``, ``control``, ``persisted``, ``timer``, ``set_full``), each with the
  caller's monotonic clock in nanoseconds; then call ``Node.end_burst``, once for many inputs if they came together.
  Where ``datagram`` has said of all of them that nothing can follow, it may be left out.
- Carry out ``Node.take_effects()`` in its order. Effects refer to buffers that are never changed afterwards.
- Call ``timer`` when ``Node.next_timer`` is reached.
- Persist effects are carried out off the loop; answer each with ``persisted`` once the bytes are on disk, or failed.
"""

from ocfcluster.protocol.node import Node

__all__ = ["Node"]
