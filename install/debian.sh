#!/bin/sh
# Install the Debian packages that pgherd needs: only what is missing, without questions, without
# making a packaged PostgreSQL cluster, without starting a daemon, without upgrading anything.
# Not root: says what is missing and the command for an administrator, and fails.
# `debian.sh tests`: what only the tests need, too.
set -eu

major=${PGHERD_DEFAULT_VERSION:-15}
beside=/usr/local/lib/pgherd/postgresql-$major/usr/lib/postgresql/$major  # where install/postgresql.sh puts it
policy=/usr/sbin/policy-rc.d
kept=$policy.before-pgherd
no_cluster=/etc/postgresql-common/createcluster.d/pgherd-install.conf

for_tests=${1:-}

missing_packages() {
    # promtool, which checks the form of what a service tells Prometheus.
    [ "$for_tests" != tests ] || command -v promtool >/dev/null 2>&1 || echo prometheus
    [ "$for_tests" != tests ] || [ -x /sbin/mkfs.xfs ] || echo xfsprogs
    command -v s6-svscan >/dev/null 2>&1 || echo s6
    command -v execlineb >/dev/null 2>&1 || echo execline
    command -v flock >/dev/null 2>&1 || echo util-linux
    # The firewall of the services, which only root has; the package's own rules and unit stay off.
    [ "$(id -u)" != 0 ] || command -v nft >/dev/null 2>&1 || [ -x /usr/sbin/nft ] || echo nftables
    /usr/bin/python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
    locale_present || [ -e /usr/share/i18n/locales/en_US ] || echo locales
    # Tells Prometheus of a service, one process a service; the package's own daemon stays off.
    [ -n "${PGHERD_EXPORTER:-}" ] || [ -x /usr/bin/prometheus-postgres-exporter ] || echo prometheus-postgres-exporter
    [ -n "${PGHERD_POSTGRES_BINDIRS:-}" ] && return
    [ ! -x "$beside/bin/postgres" ] || return
    [ -x "/usr/lib/postgresql/$major/bin/postgres" ] || echo "postgresql-$major"
    [ -x "/usr/lib/postgresql/$major/bin/psql" ] || echo "postgresql-client-$major"
    # Lets tenants create the extensions of src/pgherd/drivers/extensions.py, and no others, without a superuser.
    [ -e "/usr/lib/postgresql/$major/lib/pgextwlist.so" ] || echo "postgresql-$major-pgextwlist"
    # The audit log of pgaudit-settings; preloaded everywhere, so that it is switched on without a restart.
    [ -e "/usr/lib/postgresql/$major/lib/pgaudit.so" ] || echo "postgresql-$major-pgaudit"
}

locale_present() {
    LC_ALL=C locale -a 2>/dev/null | grep -qix 'en_US\.utf-\?8'
}

# What a killed earlier run may have left behind, and what this one lays.
restore() {
    rm -f "$no_cluster"
    if grep -qs 'laid by pgherd' "$policy"; then rm -f "$policy"; fi
    if [ -e "$kept" ] || [ -L "$kept" ]; then mv -f "$kept" "$policy"; fi
}

forbid_daemons() {
    if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$kept"; fi
    printf '#!/bin/sh\n# laid by pgherd while it installs packages: start no daemon\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    mkdir -p "${no_cluster%/*}"
    echo "create_main_cluster = off" >"$no_cluster"
}

install_packages() {
    restore
    trap restore EXIT
    trap 'exit 1' INT TERM HUP
    forbid_daemons
    echo "pgherd: installing $*"
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l
    apt-get update -qq
    chosen=
    for package in "$@"; do
        if offered "$package"; then
            chosen="$chosen $package"
        elif [ "$package" = "postgresql-$major-pgaudit" ]; then
            echo "pgherd: this release has no package $package; services on this host have no audit log" >&2
        elif offered "postgresql-$major" || [ "${package#"postgresql-$major"}" = "$package" ]; then
            echo "pgherd: this release has no package $package; install PostgreSQL $major by hand and name its" \
                "directory in PGHERD_POSTGRES_BINDIRS, or choose another with PGHERD_DEFAULT_VERSION." >&2
            exit 1
        fi  # else this release does not have that major: it comes from another one
    done
    log=$(mktemp)
    # shellcheck disable=SC2086 - a list of names
    if [ -n "$chosen" ] && ! apt-get install -y -qq --no-install-recommends --no-upgrade \
        -o Dpkg::Options::=--force-confold $chosen >"$log" 2>&1; then
        cat "$log" >&2
        exit 1
    fi
    rm -f "$log"
    restore
    trap - EXIT INT TERM HUP
}

offered() {
    apt-cache show --no-all-versions "$1" >/dev/null 2>&1
}

# It goes into /etc/locale.gen too: an upgrade of `locales` makes the archive anew from that list,
# and services whose locale is gone do not start.
generate_locale() {
    echo "pgherd: generating the locale en_US.UTF-8"
    if [ -e /etc/locale.gen ] && ! grep -q '^en_US\.UTF-8 UTF-8' /etc/locale.gen; then
        echo 'en_US.UTF-8 UTF-8' >>/etc/locale.gen
    fi
    localedef -i en_US -f UTF-8 en_US.UTF-8
}

# The extension `pgherd` of every new cluster; scripts of older versions stay for services that have them.
install_extension() {
    [ -z "${PGHERD_POSTGRES_BINDIRS:-}" ] || return 0
    for directory in /usr/share/postgresql/*/extension "${beside%%/postgresql-*}"/postgresql-*/usr/share/postgresql/*/extension; do
        [ -d "$directory" ] || continue
        for file in "${0%/*}"/postgresql/pgherd*; do
            cmp -s "$file" "$directory/${file##*/}" || install -m 644 "$file" "$directory/"
        done
    done
}

missing=$(missing_packages | sort -u | tr '\n' ' ')
if [ "$(id -u)" = 0 ]; then
    if [ -n "$missing" ]; then
        command -v apt-get >/dev/null || { echo "pgherd: needs Debian's packages: $missing" >&2; exit 1; }
        # shellcheck disable=SC2086 - a list of names
        install_packages $missing
    fi
    locale_present || generate_locale
    [ -n "${PGHERD_POSTGRES_BINDIRS:-}" ] || sh "${0%/*}/postgresql.sh" "$major"
    install_extension
    sh "${0%/*}/pgbouncer.sh"
    sh "${0%/*}/pgbackrest.sh"
    exit 0
fi
if [ -n "$missing" ]; then
    echo "pgherd: missing packages: $missing" >&2
    echo "pgherd: ask an administrator to run, in this directory:  sudo sh install/debian.sh" >&2
    exit 1
fi
if ! locale_present; then
    echo "pgherd: the locale en_US.UTF-8 is missing" >&2
    echo "pgherd: ask an administrator to run, in this directory:  sudo sh install/debian.sh" >&2
    exit 1
fi
sh "${0%/*}/pgbouncer.sh"
sh "${0%/*}/pgbackrest.sh"
