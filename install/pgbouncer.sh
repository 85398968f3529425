#!/bin/sh
# Let this host have a PgBouncer that can do what pools need (1.21: prepared statements in transaction pooling).
# Nothing is done when the system has one. Else the package of a newer Debian release is unpacked with the
# libraries it needs into a prefix of its own, which changes nothing else: no package of that release is installed, its
# source is no source of this system's apt, and no daemon is started. Fails softly: without it services have no pools.
set -eu
umask 022

prefix=${PGHERD_PGBOUNCER_PREFIX:-/usr/local/lib/pgherd/pgbouncer}
release=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Whether $1 is a program of at least 1.21.
good() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^PgBouncer \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && dpkg --compare-versions "$version" ge 1.21
}

missing() {
    echo "pgherd: no PgBouncer 1.21 or newer ($1); services will have no connection pools" >&2
    exit 0
}

for found in "${PGHERD_PGBOUNCER:-}" "$prefix/bin/pgbouncer" /usr/sbin/pgbouncer; do
    if [ -n "$found" ] && good "$found"; then exit 0; fi
done
[ "$(id -u)" = 0 ] || missing "an administrator gets it with: sudo sh install/pgbouncer.sh"
command -v apt-get >/dev/null || missing "install it and name it in PGHERD_PGBOUNCER"
[ -e "$keyring" ] || missing "$keyring is missing"

mkdir -p "${prefix%/*}"
making=$(mktemp -d "${prefix%/*}/.making-pgbouncer-XXXXXX")
trap 'rm -rf "$making"' EXIT
trap 'exit 1' INT TERM HUP
chmod 755 "$making"

# The mirrors that this system uses already.
sites() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Identifier: Packages' 2>/dev/null |
        sed -n "s/^$1 //p" | sort -u | head -1
}
main=$(sites Debian)
security=$(sites Debian-Security)
[ -n "$main" ] || missing "this system's apt knows no mirror of Debian"
apt=$making/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/sources" "$making/debs"
: >"$apt/status"
cat >"$apt/sources/pgherd.sources" <<END
Types: deb
URIs: $main
Suites: $release
Components: main
Signed-By: $keyring

END
[ -z "$security" ] || cat >>"$apt/sources/pgherd.sources" <<END

Types: deb
URIs: $security
Suites: $release-security
Components: main
Signed-By: $keyring
END
aside() {
    program=$1
    shift
    "$program" -o Dir::State="$apt" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt" \
        -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/sources" \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root "$@"
}

echo "pgherd: getting PgBouncer from Debian $release into $prefix"
aside apt-get update -qq >"$making/log" 2>&1 || missing "$(tail -1 "$making/log")"
packages=$(aside apt-get install -s --no-install-recommends pgbouncer 2>/dev/null |
    sed -n 's/^Inst \(pgbouncer\|zlib1g\|lib[^ ]*\) .*/\1/p' | grep -v perl | sort -u)
[ -n "$packages" ] || missing "Debian $release does not offer it here"
# shellcheck disable=SC2086 - a list of names
(cd "$making/debs" && aside apt-get download -qq $packages) >"$making/log" 2>&1 || missing "$(tail -1 "$making/log")"
mkdir "$making/prefix"
for deb in "$making"/debs/*.deb; do dpkg-deb -x "$deb" "$making/prefix"; done
cd "$making/prefix"
loader=$(find . -name 'ld-linux*.so.*' | head -1)
libraries=$(find . -name 'libevent-2.1.so*' -printf '%h\n' | head -1)
[ -n "$loader" ] && [ -n "$libraries" ] || missing "its packages are not laid out as expected"
mkdir -p bin
cat >bin/pgbouncer <<END
#!/bin/sh
# Written by pgherd: PgBouncer of Debian $release with its own C library.
p=$prefix
exec "\$p/${loader#./}" --argv0 pgbouncer --library-path "\$p/${libraries#./}" "\$p/usr/sbin/pgbouncer" "\$@"
END
chmod 755 bin/pgbouncer
rm -rf etc var usr/share/man usr/share/locale usr/share/bash-completion usr/lib/systemd lib/systemd
chown -R root:root .
cd /
rm -rf "$prefix"
mv -T "$making/prefix" "$prefix"
good "$prefix/bin/pgbouncer" || missing "that of Debian $release does not run here"
