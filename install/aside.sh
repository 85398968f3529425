#!/bin/sh
# Have packages of another Debian release beside the system's: `sh install/aside.sh PREFIX RELEASE PACKAGE...`
# They are unpacked with the libraries that they need, the C library among them, into PREFIX, and their programs are
# told to use those. Nothing else changes: no package of that release is installed, its source is no source of this
# system's apt, no daemon is started. A prefix that was made of the same packages is left as it is; one made anew is
# renamed into place when it is whole. PREFIX/bin has the programs, PREFIX/packages says what was unpacked.
# With ASIDE_AGAIN it is made anew even so, of what the release has now. ASIDE_THEN, a command, is run in the new tree before
# it is renamed. Says why on stderr and fails when it cannot be had.
set -eu
umask 022

prefix=$1 release=$2
shift 2
wanted="$release $*"
name=${prefix##*/}
parent=${prefix%/*}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "pgherd: $name: $1" >&2
    exit 1
}

present() {
    [ -z "${ASIDE_AGAIN:-}" ] && [ "$(head -1 "$prefix/packages" 2>/dev/null)" = "$wanted" ]
}

if present; then exit 0; fi
command -v apt-get >/dev/null || fail "this system has no apt"
[ -e "$keyring" ] || fail "$keyring is missing"

# One maker at a time; what an earlier one left that was killed is nobody's.
mkdir -p "$parent"
exec 9>"$parent/.$name.lock"
flock 9
if present; then exit 0; fi
rm -rf "$parent/.making-$name" "$parent/.old-$name"
making=$parent/.making-$name
trap 'rm -rf "$making"' EXIT
trap 'exit 1' INT TERM HUP
apt=$making/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/sources" "$making/debs" "$making/prefix" "$making/tool"

# The mirrors that this system uses already.
site() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Identifier: Packages' 2>/dev/null |
        sed -n "s/^$1 //p" | sort -u | head -1
}
source_of() {
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' "$1" "$2" "$keyring"
}
main=$(site Debian)
security=$(site Debian-Security)
[ -n "$main" ] || fail "this system's apt knows no mirror of Debian"
: >"$apt/status"
source_of "$main" "$release" >"$apt/sources/pgherd.sources"
[ -z "$security" ] || source_of "$security" "$release-security" >>"$apt/sources/pgherd.sources"
aside() {
    program=$1
    shift
    "$program" -o Dir::State="$apt" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt" \
        -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$apt/sources" \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root "$@"
}

echo "pgherd: getting $* of Debian $release into $prefix"
aside apt-get update -qq >"$making/log" 2>&1 || fail "$(tail -1 "$making/log")"
# All that an empty system would install, and of that the packages themselves and libraries.
needed=$(aside apt-get install -s --no-install-recommends "$@" patchelf 2>"$making/log" |
    sed -n 's/^Inst \([^ :]*\).*/\1/p' | sort -u)
[ -n "$needed" ] || fail "Debian $release does not offer it here: $(grep '^E:' "$making/log" | tail -1)"
chosen=$(for package in $needed; do
    case " $* patchelf " in *" $package "*) echo "$package"; continue ;; esac
    case $package in
        # PostgreSQL's JIT would be larger than all the rest.
        libllvm* | libz3-*) ;;
        *perl* | *python* | *debconf* | *-l10n | *-data | *-common | *-modules* | libsystemd-shared) ;;
        postgresql-client-[0-9]* | zlib1g | lib*) echo "$package" ;;
    esac
done)
# shellcheck disable=SC2086 - a list of names
(cd "$making/debs" && aside apt-get download -qq $chosen) >"$making/log" 2>&1 || fail "$(tail -1 "$making/log")"
for deb in "$making"/debs/*.deb; do
    case $deb in
        */patchelf_*) dpkg-deb -x "$deb" "$making/tool" ;;
        *) dpkg-deb -x "$deb" "$making/prefix" ;;
    esac
done

cd "$making/prefix"
loader=$(find . -name 'ld-linux*.so.*' | head -1)
libraries=$(find . -name 'libc.so.6' -printf '%h\n' | head -1)
[ -n "$loader" ] && [ -n "$libraries" ] || fail "its packages are not laid out as expected"
patchelf() {
    "./${loader#./}" --library-path "./${libraries#./}" "$making/tool/usr/bin/patchelf" "$@"
}
# The programs say which loader and libraries; what they load follows them (RPATH, unlike RUNPATH, is inherited).
for program in usr/bin/* usr/sbin/* usr/lib/postgresql/*/bin/*; do
    if [ -f "$program" ] && [ ! -L "$program" ] && patchelf --print-interpreter "$program" >/dev/null 2>&1; then
        patchelf --set-interpreter "$prefix/${loader#./}" --force-rpath \
            --set-rpath "$prefix/${libraries#./}" "$program" || fail "$program cannot be told its libraries"
    fi
done
mkdir bin
for program in usr/bin/* usr/sbin/*; do [ ! -f "$program" ] || ln -s "../$program" "bin/${program##*/}"; done
rm -rf etc var lib/systemd usr/lib/systemd usr/share/bash-completion usr/share/doc usr/share/lintian usr/share/locale usr/share/man
[ -z "${ASIDE_THEN:-}" ] || sh -euc "$ASIDE_THEN" || fail "its packages are not laid out as expected"
{
    echo "$wanted"
    for deb in "$making"/debs/*.deb; do dpkg-deb -W --showformat '${Package} ${Version}\n' "$deb"; done
} >packages
[ "$(id -u)" != 0 ] || chown -R root:root .
cd /
if [ -e "$prefix" ]; then mv -T "$prefix" "$parent/.old-$name"; fi
mv -T "$making/prefix" "$prefix"
rm -rf "$parent/.old-$name"
