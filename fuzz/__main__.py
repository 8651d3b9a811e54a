"""The command line: ``python -m fuzz --help``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from fuzz import runner
from fuzz.target import load, names

EXAMPLE = """\
examples:
  python -m fuzz filter_text keys --runs 50000           two targets, a few seconds each
  nice -n 19 python -m fuzz --runs 1000000 --jobs 2 --json fuzz/figures.json
                                                         all of them; the same line goes on where it was interrupted
  python -m fuzz keys --input build/fuzz/crashes/keys-crash-…
                                                         one input again, with its traceback
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m fuzz",
        description="Feed parsers with inputs that coverage guides (atheris).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all of {', '.join(names())}")
    parser.add_argument(
        "--runs", type=int, default=50_000, metavar="N", help="executions of each (default: 50000)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="targets at a time (default: 1)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep figures there, and go on from what it has"
    )
    parser.add_argument(
        "--table", action="store_true", help="print the figures of --json FILE for docs; run nothing"
    )
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="run one input on the only TARGET, without atheris"
    )
    parser.add_argument(
        "--make-corpus", action="store_true", help="write the seeds to fuzz/corpus; run nothing"
    )
    parser.add_argument(
        "--add-found", type=int, metavar="N", help="add up to N small inputs that were found to each corpus"
    )
    asked = parser.parse_args()
    chosen = asked.targets or names()
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(names())}")
    if asked.runs < 1 or asked.jobs < 1:
        parser.error("--runs and --jobs are 1 or more")
    if asked.make_corpus:
        runner.make_corpus(chosen)
        return 0
    if asked.table:
        print(runner.table(runner.Figures(asked.json)))
        return 0
    if asked.input is not None:
        if len(chosen) != 1:
            parser.error("--input is for one TARGET")
        load(chosen[0]).check(asked.input.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        print(
            "fuzz: atheris is not installed here: make fuzz, or pip install -r requirements/fuzz.txt",
            file=sys.stderr,
        )
        return 2
    if asked.add_found is not None:
        runner.add_to_corpus(chosen, asked.add_found, runner.CORPUS_INPUT_BYTES)
        return 0
    return 0 if runner.run(chosen, asked.runs, asked.jobs, runner.Figures(asked.json)) else 1


if __name__ == "__main__":
    sys.exit(main())
