#!/bin/sh
# Writes the hash-pinned requirement files anew from pyproject.toml (`make pins`); needs `uv` on the PATH.
# One file serves every supported Python: --universal writes environment markers. With --upgrade: newest versions.
set -eu
cd "$(dirname "$0")/.."

pin() {
    output=$1
    shift
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url --no-emit-find-links --output-file "$output" "$@"
    sed -i '1i # Pinned by hash from pyproject.toml: written by `make pins`, not by hand.' "$output"
}

pin requirements/runtime.txt pyproject.toml "$@"
pin requirements/dev.txt --group dev --constraint requirements/runtime.txt pyproject.toml "$@"
