"""The agent's side of the local protocol: sessions of clients, event sockets, who is at the other end.

``session`` and ``delivery`` are sans-IO but for the ``sendmsg`` of the event sockets they are given; the formats
are in ``wire/frames.py``. Nothing here knows how events are ordered between nodes.
"""
