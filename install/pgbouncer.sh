#!/bin/sh
# Let this host have a PgBouncer that can do what pools need (1.21: prepared statements in transaction pooling).
# Nothing is done when the system has one. Else that of a newer Debian release comes beside the system's packages
# (install/aside.sh). Fails softly: without it services have no pools.
set -eu

prefix=${PGHERD_PGBOUNCER_PREFIX:-/usr/local/lib/pgherd/pgbouncer}
release=trixie

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
sh "${0%/*}/aside.sh" "$prefix" "$release" pgbouncer || missing "install one and name it in PGHERD_PGBOUNCER"
good "$prefix/bin/pgbouncer" || missing "that of Debian $release does not run here"
