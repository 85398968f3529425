"""Extensions that tenants may create: pure data, and what of it a host has installed.

`CREATE EXTENSION` of a listed one runs as the superuser (pgextwlist), so a name comes into `LISTED` only when neither
its script nor its functions give files, programs, other languages or a superuser's connections to a tenant. Owners of
databases could also create any extension whose control file says `trusted`; an event trigger of the extension
`pgherd` stops those that are not listed.

`python -m pgherd.drivers.extensions [--write] docs/extensions.md` checks or writes the page.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: Majors that the platform knows; the list of each is `names`.
MAJORS = ("13", "14", "15", "16", "17", "18", "19")
#: Our own: in every database from the start, owned by the superuser, so never on a tenant's list.
OWN = "pgherd"
#: Only for services that preload it: those of variant `timescale`.
PRELOADED = frozenset({"timescaledb"})
_LAST = int(MAJORS[-1])


@dataclass(frozen=True)
class Extension:
    """`package` is Debian's (`{}`: the major; empty: part of PostgreSQL); `bookworm`: Debian 12 has it for 15."""

    name: str
    package: str = ""
    bookworm: bool = True
    first: int = 13
    last: int = 18


def _of(package: str, names: str, *, bookworm: bool = True, first: int = 13, last: int = 18) -> list[Extension]:
    return [Extension(name, package, bookworm, first, last) for name in names.split()]


_CONTRIB = """
    bloom btree_gin btree_gist citext cube dblink dict_int earthdistance fuzzystrmatch hstore intagg intarray isn lo
    ltree pg_buffercache pg_prewarm pg_stat_statements pg_trgm pgcrypto pgrowlocks pgstattuple plpgsql postgres_fdw seg
    sslinfo tablefunc tcn tsm_system_rows tsm_system_time unaccent uuid-ossp
"""
_POSTGIS = """
    address_standardizer address_standardizer_data_us postgis postgis_raster postgis_sfcgal postgis_tiger_geocoder
    postgis_topology
"""

LISTED: tuple[Extension, ...] = tuple(
    sorted(
        [
            *_of("", _CONTRIB, last=_LAST),
            *_of("postgresql-{}-postgis-3", _POSTGIS),
            *_of("postgresql-{}-h3", "h3 h3_postgis", bookworm=False, first=14),
            *_of("postgresql-{}-hll", "hll"),
            *_of("postgresql-{}-ip4r", "ip4r"),
            *_of("postgresql-{}-partman", "pg_partman"),
            *_of("postgresql-{}-pgaudit", "pgaudit"),
            *_of("postgresql-{}-pgrouting", "pgrouting"),
            *_of("postgresql-{}-pgvector", "vector", bookworm=False),
            *_of("postgresql-{}-rum", "rum"),
            *_of("postgresql-{}-similarity", "pg_similarity", last=17),
            *_of("postgresql-{}-timescaledb", "timescaledb", bookworm=False, first=14),
            *_of("postgresql-{}-unit", "unit"),
        ],
        key=lambda extension: extension.name,
    )
)

#: What the hosted service has and we do not, and what somebody may look for; with the reason.
REFUSED: dict[str, str] = {
    "adminpack": "reads and writes files of the server",
    "aiven_extras": "the schema `pgherd`, in every database from the start, takes its place (security.md)",
    "anon": "not in Debian; its masking roles and dump programs need a superuser",
    "bool_plperl": "needs PL/Perl",
    "file_fdw": "reads files and runs programs",
    "jsonb_plperl": "needs PL/Perl",
    "pageinspect": "shows raw pages past every permission",
    "pg_cron": "its jobs are started by a background worker that is the superuser, in one database of the cluster only",
    "pg_repack": "its client needs a superuser",
    "pg_stat_monitor": "not in Debian; pg_stat_statements is there",
    "pg_stat_plans": "not in Debian; pg_stat_statements is there",
    "pg_surgery": "destroys data past every permission",
    "plperl": "every escape from the interpreter (CVE-2024-10979) is code on the host",
    "plperlu": "runs any program",
    "plpython3u": "runs any program",
    "pltcl": "every escape from the interpreter is code on the host",
    "pltclu": "runs any program",
    "postgis_legacy": "not in Debian",
    "refint": "code execution through its triggers (CVE-2026-6637)",
    "vectorscale": "not in Debian",
}


def names(major: str) -> list[str]:
    """The names that tenants of this major may create."""
    return [extension.name for extension in LISTED if extension.first <= int(major) <= extension.last]


def installed(major: str, directory: Path) -> dict[str, str]:
    """Allowed names -> default version; empty when `directory`, that of the control files, lacks one."""
    return {name: _default_version(directory / f"{name}.control") for name in names(major)}


def allow_list(found: dict[str, str], without: frozenset[str] = frozenset()) -> str:
    """The value of extwlist.extensions: what is allowed and installed."""
    return ",".join(f'"{name}"' for name, version in found.items() if version and name not in without)


def _default_version(control: Path) -> str:
    try:
        found = re.search(r"^\s*default_version\s*=\s*'([^'\s]+)'", control.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found else ""


def page() -> str:
    """docs/extensions.md."""
    rows = [_row(extension) for extension in LISTED]
    refused = [f"| `{name}` | {reason} |" for name, reason in sorted(REFUSED.items())]
    return _PAGE.format(
        majors=" | ".join(MAJORS), rule="|---" * len(MAJORS), rows=_lines(rows), refused=_lines(refused)
    )


def _row(extension: Extension) -> str:
    source = "PostgreSQL"
    if extension.package:
        source = f"`{extension.package.format('N')}`{'' if extension.bookworm else ', not in Debian 12'}"
    has = ("yes" if extension.first <= int(major) <= extension.last else "" for major in MAJORS)
    return f"| `{extension.name}` | {source} | {' | '.join(has)} |"


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows)


_PAGE = """\
# Extensions

<!-- Written by `python -m pgherd.drivers.extensions --write docs/extensions.md`. -->

Whoever has the privilege `CREATE` on a database may `CREATE` and `ALTER ... UPDATE` these extensions there, and its
owner may `DROP` them, without being a superuser. The extension belongs to the superuser, as do its functions;
`ALTER EXTENSION ... ADD` and `DROP` are refused.

What an extension keeps for superusers and monitoring roles is the database's owner's as well, as far as it is of use:

- `postgres_fdw`, `dblink`: servers. Others make them after `GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO ...`
  (`dblink_fdw`), or use the owner's after `GRANT USAGE ON FOREIGN SERVER ...`.
- `pg_partman`: its tables. Beside an older version of it `ALTER EXTENSION ... UPDATE` is refused in that database: keep
  what is in `part_config` and `part_config_sub`, drop it and create it again.
- `pgstattuple`, `pg_buffercache`: their functions and views. For others, make a `SECURITY DEFINER` function.

`postgis_topology` can be created but makes no topologies, and the tables of `postgis_tiger_geocoder` stay closed: both
need a superuser.

A listed extension can be created when the host has its package; `pgherd extensions` shows which hosts have it, in SQL
`SHOW extwlist.extensions` and `pg_available_extensions` do. `make up` installs PostgreSQL's own; the others are for the
operator to install (`N` is PostgreSQL's major); after `pgherd restart` the agent offers them to the host's services
with a reload. One that is missing is refused with PostgreSQL's own error, which names the missing control file.
`timescaledb` is there in services of variant `timescale` only ([settings.md](settings.md)).

| extension | Debian package | {majors} |
|---|---{rule}|
{rows}

## Refused

Do not install packages of languages (`postgresql-plperl-N`, ...) on hosts: services refuse them, but their files are a
needless risk.

| extension | why |
|---|---|
{refused}
"""


def main() -> int:
    """Write the page, or say whether it is the right one."""
    parser = argparse.ArgumentParser(description="The page of extensions.")
    parser.add_argument("--write", action="store_true", help="write the file; otherwise it is only checked")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.write:
        arguments.file.write_text(page())
    elif arguments.file.read_text() != page():
        print(f"{arguments.file} is out of date; repair it with --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
