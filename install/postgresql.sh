#!/bin/sh
# Have these majors of PostgreSQL on this host: `sh install/postgresql.sh 17 18`. One that the system has, or that
# PGHERD_POSTGRES_BINDIRS names, is left as it is. Any other comes beside the system's packages (install/aside.sh) from a
# Debian release that has it, with the extensions that services use; with --again before them, also one that is there, in
# the release's newest minor. After `pgherd restart` the agent offers it.
set -eu

here=$(cd "${0%/*}" && pwd)
place=/usr/local/lib/pgherd

fail() {
    echo "pgherd: $1" >&2
    exit 1
}

if [ "${1:-}" = --again ]; then
    export ASIDE_AGAIN=1
    shift
fi
for major in "$@"; do
    case ",${PGHERD_POSTGRES_BINDIRS:-}" in *",$major="*) continue ;; esac
    programs=usr/lib/postgresql/$major
    if [ -x "/$programs/bin/postgres" ]; then continue; fi
    case $major in
        15) release=bookworm more= ;;
        17) release=trixie more="postgresql-17-timescaledb postgresql-17-pgvector" ;;
        18) release=forky more="postgresql-18-timescaledb postgresql-18-pgvector" ;;
        *) fail "no Debian release has PostgreSQL $major; install it and name its directory in PGHERD_POSTGRES_BINDIRS" ;;
    esac
    prefix=$place/postgresql-$major
    if [ "$(id -u)" != 0 ]; then
        if [ -z "${ASIDE_AGAIN:-}" ] && [ -x "$prefix/$programs/bin/postgres" ]; then continue; fi
        fail "an administrator installs PostgreSQL $major with:  sudo sh install/postgresql.sh $major"
    fi
    export ASIDE_THEN="
        rm -f $programs/lib/llvmjit.so $programs/bin/*.py
        cp '$here'/postgresql/pgherd* usr/share/postgresql/$major/extension/"
    # shellcheck disable=SC2086 - words or none
    sh "$here/aside.sh" "$prefix" "$release" "postgresql-$major" "postgresql-client-$major" \
        "postgresql-$major-pgaudit" "postgresql-$major-pgextwlist" "postgresql-$major-partman" $more
    "$prefix/$programs/bin/postgres" --version >/dev/null || fail "PostgreSQL $major of Debian $release does not run here"
done
