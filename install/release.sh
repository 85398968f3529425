#!/bin/sh
# Install the program of this checkout as a release: HOME/releases/<version>-<hash of its content>, a virtual
# environment of its own with the locked dependencies, made aside and renamed into place. Prints its directory.
# Nothing is done when it is there already. Which release runs (HOME/current) is decided by `pgherd up`.
set -eu
umask 022

root=$(cd "$(dirname "$0")/.." && pwd)
uv=$root/.venv/bin/uv
if [ -n "${PGHERD_HOME:-}" ]; then home=$PGHERD_HOME
elif [ "$(id -u)" = 0 ]; then home=/var/lib/pgherd
else home=$HOME/.local/share/pgherd
fi
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)

cd "$root"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
hash=$({
    "$python" -c 'import sys; print(sys.version, sys.executable)'
    find src/pgherd pyproject.toml uv.lock install/release.sh -type f ! -name '*.pyc' | LC_ALL=C sort |
        while read -r file; do sha256sum "$file"; done
} | sha256sum | cut -c1-12)
release=$home/releases/$version-$hash
if [ -x "$release/bin/pgherd" ]; then
    echo "$release"
    exit 0
fi

mkdir -p "$home/releases"
making=$home/releases/.making-$$
trap 'rm -rf "$making"' EXIT
trap 'exit 1' INT TERM HUP
for left in "$home"/releases/.making-*; do
    if [ -d "$left" ] && ! kill -0 "${left##*-}" 2>/dev/null; then rm -rf "$left"; fi
done
mkdir "$making"
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME
quiet() { "$uv" --quiet "$@"; }
quiet export --frozen --no-dev --no-emit-project --output-file "$making/requirements.txt" >&2
quiet build --wheel --out-dir "$making/dist" "$root" >&2
quiet venv --python "$python" --no-python-downloads --relocatable "$making/venv" >&2
quiet pip install --python "$making/venv/bin/python" --link-mode copy --compile-bytecode \
    --require-hashes --requirements "$making/requirements.txt" >&2
quiet pip install --python "$making/venv/bin/python" --link-mode copy --compile-bytecode --no-deps "$making"/dist/*.whl >&2
chmod -R a+rX,go-w "$making/venv"
if [ ! -e "$release" ]; then mv -T "$making/venv" "$release" 2>/dev/null || [ -x "$release/bin/pgherd" ]; fi
echo "$release"
