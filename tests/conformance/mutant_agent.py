"""An agent with a deliberate mistake, for tests: ``python -m tests.conformance.mutant_agent NAME --config FILE``.

Patches the mutation NAME (``none``: nothing) into this process and then does what ``ocfcluster agent`` does.
"""

from __future__ import annotations

import sys

from ocfcluster.cli import main
from tests.conformance.mutations import MUTATIONS

NO_MISTAKE = "none"

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name != NO_MISTAKE:
        MUTATIONS[name].apply()
    main(["agent", *arguments])
