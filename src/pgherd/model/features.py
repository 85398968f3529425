"""What a wish asks beyond plain PostgreSQL: audit log, TimescaleDB, replication; and the parameters of all of it.

Some of it depends on what a host has installed. `Installed` is what the hosts report for one major.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pgherd.contract.schema import incorrect
from pgherd.errors import Conflict
from pgherd.model.pg_settings import faults_of, flatten
from pgherd.model.plan import PLANS
from pgherd.model.service import Wish
from pgherd.spec import Setting

TIMESCALE = "timescale"
#: Keys of pgaudit-settings that not every pgaudit has, with the value that means what it does without them.
_OPTIONAL: Mapping[str, Any] = {"log_max_string_length": -1, "log_nested_statements": True, "log_parameter_max_size": 0}
#: Fields of which the library takes less than the contract lets through, with the least and the most.
BOUNDS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("timescaledb-settings", "max_background_workers"): (1, 1000),
    ("pgaudit-settings", "log_parameter_max_size"): (0, 1073741823),
}
#: Extension -> the first major with which Debian and install/postgresql.sh have it.
_PACKAGED = {"pgaudit": 13, "timescaledb": 17}


@dataclass(frozen=True)
class Installed:
    """Of one major on one host: its extensions with their versions, and the parameters that its pgaudit knows.

    `audit` is None where the host does not say.
    """

    extensions: Mapping[str, str]
    audit: frozenset[str] | None = None

    @classmethod
    def on(cls, facts: Mapping[str, Any] | None, major: str) -> Installed:
        """From the facts that a host reports."""
        known = (facts or {}).get("audit", {}).get(major)
        return cls((facts or {}).get("extensions", {}).get(major, {}), None if known is None else frozenset(known))

    def has(self, extension: str) -> bool:
        """Whether the extension is there."""
        return bool(self.extensions.get(extension))


def is_audited(wish: Wish) -> bool:
    """Whether the audit log is on."""
    return bool(wish.pgaudit_settings.get("feature_enabled"))


def needed(wish: Wish) -> list[str]:
    """The extensions without which a host cannot serve the wish."""
    wanted = {"pgaudit": is_audited(wish), "timescaledb": wish.variant == TIMESCALE}
    return [extension for extension, is_wanted in wanted.items() if is_wanted]


def check(
    wish: Wish, installed: Installed | None = None, hosts: Callable[[], Iterable[Mapping[str, Any]]] = tuple
) -> None:
    """Raise Incorrect with all faults of a wish; those that a host decides too, once it is chosen.

    `hosts` answers the facts of all of them, for what to do about something that is not installed.
    """
    faults = list(faults_of(wish.pg_settings, int(wish.version), PLANS[wish.plan]))
    if wish.synchronous_replication == "quorum" and PLANS[wish.plan].nodes == 1:
        faults.append(
            f"synchronous-replication: must be off on plan {wish.plan}: it has one node, and quorum needs another one"
            " that confirms what is written"
        )
    if wish.timescaledb_settings and wish.variant != TIMESCALE:
        faults.append("timescaledb-settings: only a service of variant timescale has them")
    faults += _out_of_bounds(wish)
    if installed is not None:
        lacking = [extension for extension in needed(wish) if not installed.has(extension)]
        faults += [missing(extension, wish.version, hosts()) for extension in lacking]
        faults += _unknown_to(wish, installed)
    if faults:
        raise incorrect(faults)


def check_variant(old: Wish, new: Wish) -> None:
    """Raise Conflict when a service would lose what its data may need."""
    if old.variant == TIMESCALE != new.variant:
        raise Conflict(
            "variant: a service of variant timescale stays one, since its tables may need TimescaleDB;"
            " create a service of variant aiven and copy the data there."
        )


def missing(extension: str, version: str, hosts: Iterable[Mapping[str, Any]]) -> str:
    """The fault of a wish that no host can serve, with what helps: of the operator, and with other versions."""
    field = "variant" if extension == "timescaledb" else "pgaudit-settings.feature_enabled"
    having = {major for facts in hosts for major, found in facts.get("extensions", {}).items() if found.get(extension)}
    others = " or ".join(sorted(having, key=int))
    first, script = _PACKAGED[extension], "`sudo sh install/postgresql.sh"
    if int(version) >= first:
        todo = (
            f"; an operator installs the package postgresql-{version}-{extension} or, where install/postgresql.sh"
            f" brought PostgreSQL {version}, runs {script} --again {version}`, and then `pgherd restart`"
        )
    else:
        todo = f", and Debian has it from PostgreSQL {first} on"
        if not others:
            todo += f": an operator runs {script} {first}` and `pgherd restart`, for a new service of version {first}"
    more = f"; a new service can have it with version {others}" if others else ""
    return f"{field}: {extension} for PostgreSQL {version} is not installed here{todo}{more}"


def parameters(wish: Wish) -> dict[str, Setting]:
    """PostgreSQL's parameters for all settings of a wish."""
    found = flatten(wish.pg_settings, int(wish.version))
    if wish.variant == TIMESCALE:
        found |= {f"timescaledb.{name}": value for name, value in wish.timescaledb_settings.items()}
    if is_audited(wish):
        found |= {f"pgaudit.{name}": value for name, value in _audit(wish.pgaudit_settings)}
    return found


def _audit(settings: Mapping[str, Any]) -> Iterator[tuple[str, Setting]]:
    for name, value in settings.items():
        if name == "log":
            yield name, ",".join(value) or "none"
        elif name != "feature_enabled" and (name not in _OPTIONAL or value != _OPTIONAL[name]):
            yield name, value


def _out_of_bounds(wish: Wish) -> Iterator[str]:
    settings = {"timescaledb-settings": wish.timescaledb_settings, "pgaudit-settings": wish.pgaudit_settings}
    for (group, name), (least, most) in BOUNDS.items():
        if not least <= settings[group].get(name, least) <= most:
            yield f"{group}.{name}: must be an integer from {least} to {most}"


def _unknown_to(wish: Wish, installed: Installed) -> Iterator[str]:
    if installed.audit is None or not installed.has("pgaudit"):
        return
    for name, value in wish.pgaudit_settings.items():
        if name in _OPTIONAL and value != _OPTIONAL[name] and f"pgaudit.{name}" not in installed.audit:
            only = str(_OPTIONAL[name]).lower()
            yield f"pgaudit-settings.{name}: must be {only}; pgaudit for PostgreSQL {wish.version} has no other here"
