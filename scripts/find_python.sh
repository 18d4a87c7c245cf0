#!/bin/sh
# Print the path of a Python that can make the virtual environment, or say on standard error
# what is missing and which command installs it. PYTHON=/path/to/python: that one and no other.
set -u

say() { printf '%s\n' "$*" >&2; }

say_how_to_install() {
    if command -v apt-get >/dev/null 2>&1; then
        sudo="sudo "
        [ "$(id -u)" != 0 ] || sudo=""
        say "Install it with: ${sudo}apt-get update && ${sudo}apt-get install -y $*"
    else
        say "Install Python 3.10 or newer with its modules venv and ensurepip."
    fi
}

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    # python3 first: it is the one that the distribution's python3-venv belongs to.
    set -- python3 python3.13 python3.12 python3.11 python3.10 python3.14
fi

too_old=""
without_venv=""
for candidate in "$@"; do
    # A name that is found may still not run: version managers leave stubs behind.
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        continue
    if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        too_old="$too_old $candidate ($version)"
    elif "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
        command -v "$candidate"
        exit 0
    elif [ -z "$without_venv" ]; then
        without_venv="$candidate ($version)"
        case "${candidate##*/}" in
            python3.*) package="python$version-venv" ;;
            *) package="python3-venv" ;;
        esac
    fi
done

if [ -n "$without_venv" ]; then
    say "error: $without_venv has no venv module (or no ensurepip)."
    say_how_to_install "$package"
elif [ -n "$too_old" ]; then
    say "error: Python 3.10 or newer is needed; found:$too_old."
    say "Debian 12, Ubuntu 22.04 and later ones bring it. If it is elsewhere, name it:"
    say "make PYTHON=/path/to/python3 ..."
elif [ -n "${PYTHON:-}" ]; then
    say "error: PYTHON=$PYTHON does not run. Give the name or path of Python 3.10 or newer,"
    say "or leave PYTHON out, to have one looked for."
else
    say "error: there is no Python here; version 3.10 or newer is needed."
    say_how_to_install python3 python3-venv
fi
exit 1
