#!/bin/sh
# Writes the hash-pinned requirement files anew from pyproject.toml (`make pins`); needs `uv` on the PATH.
# One file serves every supported Python: --universal writes environment markers. With --upgrade: newest versions.
set -eu
cd "$(dirname "$0")/.."

pin() {
    output=$1 source=$2
    shift 2
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --output-file "$output" "$@"
    sed -i "1i # Pinned by hash from $source: written by \`make pins\`, not by hand." "$output"
}

pin requirements/runtime.txt pyproject.toml pyproject.toml "$@"
pin requirements/build.txt pyproject.toml --group pyproject.toml:build --constraint requirements/dev.txt "$@"
pin requirements/dev.txt pyproject.toml --group dev --constraint requirements/runtime.txt pyproject.toml "$@"
pin requirements/release.txt pyproject.toml --group pyproject.toml:release --constraint requirements/dev.txt "$@"
pin requirements/peers.txt requirements/peers.in requirements/peers.in "$@" # of what bench.compare measures beside us
pin requirements/fuzz.txt requirements/fuzz.in requirements/fuzz.in "$@" # of `make fuzz`
