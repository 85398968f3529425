"""`pg-settings` of the contract as parameters of PostgreSQL: names, units, versions, relations.

Types, ranges, enums and patterns are the contract's and already checked when a request gets here; this
module knows what the contract's schema cannot say.
"""

from __future__ import annotations

import functools
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pgherd.contract.schema import incorrect
from pgherd.model.plan import MIB, Plan
from pgherd.spec import Setting

GROUPS = ("autovacuum", "bg-writer", "wal")

#: Parameter -> first major version that has it.
SINCE: Mapping[str, int] = {
    "default_toast_compression": 14,
    "io_combine_limit": 17,
    "io_max_combine_limit": 18,
    "io_max_concurrency": 18,
    "io_method": 18,
    "io_workers": 18,
}

#: Bytes of shared memory that an entry of the lock tables takes, rounded up (PostgreSQL 13 to 18, 64 bit).
_LOCK, _PREDICATE_LOCK = 360, 280
#: PostgreSQL's or the platform's defaults of the parameters that size the lock tables.
_DEFAULTS = {
    "max_locks_per_transaction": 64,
    "max_pred_locks_per_transaction": 64,
    "max_prepared_transactions": 0,
    "autovacuum_max_workers": 3,
    "max_worker_processes": 8,
    "max_wal_senders": 20,
}
#: Percent of a plan's memory that lock tables may take.
_LOCK_PERCENT = 25


def merge(old: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """The settings after a request: sent keys replace, groups merge, null takes a key back to its default."""
    result = dict(old)
    for key, value in sent.items():
        if isinstance(value, Mapping):
            before = result.get(key)
            result[key] = merge(before if isinstance(before, Mapping) else {}, value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def flatten(settings: Mapping[str, Any], version: int, plan: Plan | None = None) -> dict[str, Setting]:
    """PostgreSQL's parameters for the settings of a service of this major version.

    With a plan, settings whose lock tables would not fit its memory are refused too. Raises Incorrect with
    all faults in one message.
    """
    if faults := faults_of(settings, version, plan):
        raise incorrect(faults)
    parameters = {name: value for _, name, value in _leaves(settings) if value is not None}
    return {name: _CONVERT[name](value) if name in _CONVERT else value for name, value in parameters.items()}


def faults_of(settings: Mapping[str, Any], version: int, plan: Plan | None = None) -> list[str]:
    """What a service of this version and plan cannot have, as `field: what is allowed`."""
    parameters = {name: value for _, name, value in _leaves(settings) if value is not None}
    return [*too_new(settings, version), *_unfit(settings), *(_too_many_locks(parameters, plan) if plan else ())]


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Path in the request, parameter name and value of each setting."""
    for key, value in settings.items():
        if key in GROUPS and isinstance(value, Mapping):
            for name, inner in value.items():
                yield f"pg-settings.{key}.{name}", name, inner
        else:
            yield f"pg-settings.{key}", key, value


def too_new(settings: Mapping[str, Any], version: int) -> Iterator[str]:
    """Which settings this major does not have; the values may be anything."""
    for path, name, _ in _leaves(settings):
        if SINCE.get(name, 0) > version:
            yield f"{path}: needs PostgreSQL {SINCE[name]} or newer; the service runs {version}"


def _unfit(settings: Mapping[str, Any]) -> Iterator[str]:
    for path, name, value in _leaves(settings):
        if name in NARROWER and value is not None and not NARROWER[name][1](value):
            yield f"{path}: must be {NARROWER[name][0]}"


def _too_many_locks(parameters: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    size = {name: parameters.get(name, default) for name, default in _DEFAULTS.items()}
    holders = plan.max_connections + size["max_prepared_transactions"] + 2
    holders += size["autovacuum_max_workers"] + size["max_worker_processes"] + size["max_wal_senders"]
    entry = size["max_locks_per_transaction"] * _LOCK + size["max_pred_locks_per_transaction"] * _PREDICATE_LOCK
    needed, most = holders * entry // MIB, plan.memory_bytes * _LOCK_PERCENT // 100 // MIB
    if needed > most:
        yield (
            "pg-settings: max_locks_per_transaction, max_pred_locks_per_transaction and max_prepared_transactions"
            f" together need {needed} MiB for lock tables; plan {plan.name} has {most} MiB for them"
        )


@functools.cache
def _timezones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones() - {"localtime", "Factory", "posixrules"})


def _is_users(role: str) -> bool:
    return role != "postgres" and not role.startswith(("pg_", "pgherd_"))


#: Parameter -> what it must be, narrower than the contract: in words, and whether a value of the contract's is that.
NARROWER: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "io_max_concurrency": ("-1 or an integer from 1 to 1024", lambda most: most != 0),
    "pg_partman_bgw.role": ("a user of the service, none of the platform's", _is_users),
    "timezone": (
        "a time zone that PostgreSQL knows, such as Europe/Zurich or UTC", lambda zone: zone in _timezones(),
    ),
    "wal_sender_timeout": ("0 or an integer from 5000 to 10800000", lambda timeout: not 0 < timeout < 5000),
}  # fmt: skip


def _unquoted(value: str) -> str:
    """The contract writes log_line_prefix as postgresql.conf does, in quotes."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == "'" else value


#: Where the contract's unit is not the parameter's own.
_CONVERT: Mapping[str, Callable[[Any], Setting]] = {
    "bgwriter_flush_after": lambda kilobytes: f"{-(-kilobytes // 8) * 8}kB",  # kept in blocks of 8 kB; 0 would be off
    "max_stack_depth": lambda size: f"{size // 1024}kB",
    "log_line_prefix": _unquoted,
}
