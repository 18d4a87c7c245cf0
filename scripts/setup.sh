#!/bin/sh
# Make .venv in the project's root with the package and all that it needs. Safe to repeat.
#
# The file .venv/setup-state says how far that came: "unfinished" while packages are being
# installed, afterwards what they were installed from. An environment that somebody else made
# is used, and never removed.
#
#     PYTHON            the Python to make it with; otherwise one is looked for
#     TORCH_INDEX_URL   package index for torch and torchvision, for a build without CUDA
set -eu
cd "$(dirname "$0")/.."

python=.venv/bin/python
state=.venv/setup-state
wanted="$(cksum <pyproject.toml) in $(pwd)"
export PIP_DISABLE_PIP_VERSION_CHECK=1
trap 'exit 130' INT TERM

say() { printf '%s\n' "$*" >&2; }

state_says() { [ -f "$state" ] && grep -qxF "$1" "$state"; }

version_of() { "$1" -c 'import sys; print(sys.version)' 2>/dev/null; }

# Print why an environment of ours has to be made again, or nothing.
reason_to_begin_again() {
    if ! grep -q '^torch from' "$state"; then
        echo "its installation was interrupted"
    elif ! "$python" -c 'import pip' 2>/dev/null; then
        echo "its Python no longer runs"
    elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$python")" != "$(version_of "$PYTHON")" ]; then
        echo "PYTHON is not the one that it was made with"
    elif [ -n "${TORCH_INDEX_URL:-}" ] && ! state_says "torch from $TORCH_INDEX_URL"; then
        echo "TORCH_INDEX_URL is not the index that its torch came from"
    fi
}

install() {
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        "$python" -m pip install --index-url "$TORCH_INDEX_URL" torch torchvision || return
    fi
    "$python" -m pip install --editable '.[dev]'
}

rmdir .venv 2>/dev/null || true # stopped right after it was created
if [ -d .venv ] && { [ ! -f "$state" ] || state_says "made elsewhere"; }; then
    if ! "$python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        say "error: there is a .venv that 'make' did not make, and it has no Python 3.10 or newer"
        say "with pip. Remove it, or move it away: rm -r .venv"
        exit 1
    fi
    origin="made elsewhere"
elif [ -d .venv ]; then
    reason=$(reason_to_begin_again)
    if [ -n "$reason" ]; then
        base=$(sh scripts/find_python.sh) # before anything is removed
        say "Making .venv again: $reason."
        rm -rf .venv
    else
        origin=$(grep '^torch from' "$state")
    fi
fi
if state_says "$wanted"; then
    exit 0
fi

if [ ! -d .venv ]; then
    base=${base:-$(sh scripts/find_python.sh)}
    mkdir .venv
    echo unfinished >"$state"
    say "Making .venv with $base"
    "$base" -m venv .venv
    origin="torch from ${TORCH_INDEX_URL:-the default index}"
fi

say "Installing the package and what it needs into .venv. The first time this takes minutes."
before=$(cat "$state" 2>/dev/null || true)
[ "$origin" = "made elsewhere" ] || echo unfinished >"$state"
if ! install; then
    # Where pip itself gives up it has changed nothing; only being killed leaves things half done.
    [ -z "$before" ] || printf '%s\n' "$before" >"$state"
    exit 1
fi
printf '%s\n%s\n' "$wanted" "$origin" >"$state"
