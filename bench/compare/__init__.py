"""The same work on ocfcluster and on other systems, side by side: ``python -m bench.compare --help``."""
