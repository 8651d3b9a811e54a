"""Exit codes, and the one line that a user gets for an error.

===  =========================================================================================================
  0  done; also when the reader of our output went away (``| head``)
  1  failed: a check did not hold, a time limit passed, the outcome of a publication is unknown
  2  usage or configuration: an option, argument or file is wrong
  3  machine set-up: interface, port, buffer, state directory
  4  no agent: nothing listens on the socket, or the agent went away
  5  refused: unknown topic, no permission, a limit, too large, no majority
  6  of ``ocfcluster agent``: the cluster goes on without this node, and ``cluster.rejoin`` is off
130  interrupted (Ctrl-C)
===  =========================================================================================================
"""

from __future__ import annotations

from enum import IntEnum

from ocfcluster import errors


class Exit(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    SETUP = 3
    NO_AGENT = 4
    REFUSED = 5
    INTERRUPTED = 130


# The first class that fits counts, so the special ones stand before their bases.
_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (errors.ConfigurationError, Exit.USAGE),
    (errors.SetupError, Exit.SETUP),
    (errors.StateDirectoryError, Exit.SETUP),
    (errors.AgentUnreachable, Exit.NO_AGENT),
    (errors.NotConnected, Exit.NO_AGENT),
    (errors.WouldBlock, Exit.FAILED),
    (errors.OutcomeUnknown, Exit.FAILED),
    (errors.ClientError, Exit.REFUSED),
    (errors.OcfError, Exit.FAILED),
    (TimeoutError, Exit.FAILED),
    (OSError, Exit.USAGE),  # a file that was named on the command line
)

# For errors of a class whose text has these words.
_HINTS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        errors.UnknownTopic,
        "no topic",
        "`ocfcluster topic list` shows the topics, `ocfcluster topic create` makes one",
    ),
    (errors.TopicExists, "with scope", "`ocfcluster topic show` tells its scope"),
    (
        errors.TopicExists,
        "other settings",
        "`ocfcluster topic show` tells them, `ocfcluster topic alter` changes them",
    ),
    (errors.OutcomeUnknown, "", "subscribe to the topic to see whether it came"),
    (errors.WouldBlock, "", "the cluster takes no more for now; `ocfcluster status` tells its state"),
)


def exit_code(error: Exception) -> Exit:
    """The code of the table above for ``error``."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return Exit.FAILED


def explain(error: Exception) -> str:
    """One line: what went wrong, and where something can be done about it, what."""
    if isinstance(error, errors.ClientError):
        text = str(error.strerror)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, errors.OcfError):
        text = str(error)
    else:
        text = f"internal error: {type(error).__name__}: {error} (OCFCLUSTER_DEBUG=1 shows where)"
    text = " ".join(text.split())
    if text.endswith("start one with `ocfcluster agent`"):
        text += ", or name its socket with --socket"
    for kind, words, hint in _HINTS:
        if isinstance(error, kind) and words in text and hint not in text:
            return f"{text}; {hint}"
    return text
