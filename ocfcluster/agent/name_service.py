"""Ids of users and groups by name, and the groups of users, from the system's databases.

A database may be a directory on the other side of a network, so it is asked in a thread of its own, which is started
with the first name. What is found is remembered for a while; the agent's loop never waits.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from ocfcluster.limits import (
    NAME_LIFETIME_NS,
    NAME_UNKNOWN_LIFETIME_NS,
    NAME_WAIT_NS,
    NAMES_ASKED,
    NAMES_KNOWN,
    SECOND_NS,
)

# ("user", name) is a uid, ("group", name) a gid, ("groups", uid in digits) all gids of that user.
Key = tuple[str, str]
Ids = tuple[int, ...]


def look_up(kind: str, name: str) -> Ids:
    """Ask the system, however long that takes; empty where there is no such user or group."""
    try:
        if kind == "user":
            return (pwd.getpwnam(name).pw_uid,)
        if kind == "group":
            return (grp.getgrnam(name).gr_gid,)
        user = pwd.getpwuid(int(name))
        return tuple(os.getgrouplist(user.pw_name, user.pw_gid))
    except (KeyError, OSError, ValueError, OverflowError):
        return ()


class NameService:
    """What names mean on this node. All but the look-ups themselves happens in the loop's thread.

    ``answered`` is called when those who waited have been told.
    """

    def __init__(
        self, loop: Callable[[], asyncio.AbstractEventLoop], answered: Callable[[], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._answered = answered
        self._clock = clock
        self._known: dict[Key, tuple[Ids, int]] = {}  # what was found, and until when it is taken for true
        self._asked: dict[Key, int] = {}  # look-ups under way, and since when
        self._waiting: list[Callable[[], None]] = []
        self._questions: SimpleQueue[Key | None] | None = None  # of the thread, once there is one

    def ids(self, kind: str, name: str) -> Ids | None:
        """What a name means; empty: nobody, or it could not be found out in time. None: it is being looked up."""
        key = (kind, name)
        now = self._clock()
        ids, until = self._known.get(key, ((), 0))
        if now < until:
            return ids
        since = self._asked.get(key)
        if since is None:
            if len(self._asked) >= NAMES_ASKED:
                return ()
            self._asked[key] = now
            self._ask(key)
            return None
        return None if now - since < NAME_WAIT_NS else ()

    def when_answered(self, call: Callable[[], None]) -> None:
        """Have ``call`` made once, as soon as any look-up has ended or has taken too long; it may ask again."""
        self._waiting.append(call)

    def _ask(self, key: Key) -> None:
        if self._questions is None:
            self._questions = SimpleQueue()
            # As a daemon: one that hangs in a look-up must not keep the agent from ending.
            threading.Thread(target=self._work, name="ocfcluster-names", daemon=True).start()
        self._questions.put(key)
        self._loop().call_later(NAME_WAIT_NS / SECOND_NS, self._late, key)

    def _work(self) -> None:
        questions = self._questions
        while questions is not None:
            key = questions.get()
            if key is None:
                return
            ids = look_up(*key)
            try:
                self._loop().call_soon_threadsafe(self.found, key, ids)
            except RuntimeError:
                return  # the loop has ended meanwhile

    def found(self, key: Key, ids: Ids) -> None:
        """The end of a look-up."""
        self._asked.pop(key, None)
        self._known.pop(key, None)
        self._known[key] = ids, self._clock() + (NAME_LIFETIME_NS if ids else NAME_UNKNOWN_LIFETIME_NS)
        if len(self._known) > NAMES_KNOWN:
            del self._known[next(iter(self._known))]
        self._tell()

    def _late(self, key: Key) -> None:
        if key in self._asked:
            self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
        self._answered()

    def close(self) -> None:
        """Nobody waits any more; those who did are told a last time, with what is known."""
        if self._questions is not None:
            self._questions.put(None)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
        self._waiting.clear()
