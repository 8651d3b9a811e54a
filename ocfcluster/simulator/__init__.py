"""A seeded virtual world that runs the protocol core that ships.

One thread, one event heap, one seed: the same seed gives the same run, byte for byte, on every machine and under
every PYTHONHASHSEED. The checker is an oracle outside of the system: it sees what nodes deliver and answers, and
knows what was published; what the protocol believes about itself counts only where a promise is about it (``held``).
"""

from __future__ import annotations
