#!/bin/sh
# Let this host have a pgBackRest that knows every major of PostgreSQL that services may have, and that stores only the
# changed blocks of large files (2.46). Nothing is done when the system has one. Else that of a newer Debian release comes
# beside the system's packages (install/aside.sh). Fails softly: without it services have no backups.
set -eu

prefix=${PGHERD_PGBACKREST_PREFIX:-/usr/local/lib/pgherd/pgbackrest}
release=trixie

# Whether $1 is a program of at least 2.54, the first that knows PostgreSQL 17 and 18.
good() {
    version=$("$1" version 2>/dev/null | sed -n 's/^pgBackRest \([0-9.]*\).*/\1/p')
    [ -n "$version" ] && dpkg --compare-versions "$version" ge 2.54
}

missing() {
    echo "pgherd: no pgBackRest 2.54 or newer ($1); services will have no backups" >&2
    exit 0
}

for found in "${PGHERD_PGBACKREST:-}" "$prefix/bin/pgbackrest" /usr/bin/pgbackrest; do
    if [ -n "$found" ] && good "$found"; then exit 0; fi
done
[ "$(id -u)" = 0 ] || missing "an administrator gets it with: sudo sh install/pgbackrest.sh"
sh "${0%/*}/aside.sh" "$prefix" "$release" pgbackrest || missing "install one and name it in PGHERD_PGBACKREST"
good "$prefix/bin/pgbackrest" || missing "that of Debian $release does not run here"
