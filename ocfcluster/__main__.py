"""``python -m ocfcluster``: the same as the command ``ocfcluster``."""

from __future__ import annotations

from ocfcluster.cli import main

if __name__ == "__main__":
    main()
