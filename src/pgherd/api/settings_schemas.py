"""The schemas of settings that clients validate against and people read: the contract's, made true for this product.

What is checked here beyond the contract comes from where it is checked. Only the words that the contract has wrong for
this product stand here. Bounds are narrowed where one more number says it; a hole in a range is said in words alone, as
the server's own refusal says it better than a client's can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from pgherd.model.features import BOUNDS
from pgherd.model.pg_settings import GROUPS, NARROWER, SINCE

Schema = dict[str, Any]

_SERVED = ("pg", "pgbouncer", "pglookout", "timescaledb")
_RESTARTS = " Changing this parameter causes a service restart."
#: Default, where it is not the contract's: PostgreSQL's own or the platform's.
_DEFAULTS = {
    "autovacuum_analyze_scale_factor": "`0.1`",
    "log_autovacuum_min_duration": "`600000`",
    "max_slot_wal_keep_size": "a quarter of the plan's disk",
}
#: What PostgreSQL 18 changes by a reload.
_RELOADED_BY_18 = ("autovacuum_max_workers", "io_workers")
_LOCKS = "The lock tables of all settings together may take a quarter of the plan's memory."
_NOT_THERE = "It is kept and shown and has no effect: no version here has this extension."
_PARTMAN = "It has an effect where the host has pg_partman for the service's version."
_NOTES = {
    "io_method": "`io_uring` needs a kernel that allows it.",
    "jit": "It has no effect with a PostgreSQL that came without a JIT compiler, as 17 and 18 beside the system's do.",
    "max_locks_per_transaction": _LOCKS,
    "max_pred_locks_per_transaction": _LOCKS,
    "max_prepared_transactions": _LOCKS,
    "password_encryption": "The default is `scram-sha-256`. With `md5`, a user whose password is then set in SQL cannot"
    " log in: the service and its pools take SCRAM only.",
    "pg_partman_bgw.interval": _PARTMAN,
    "pg_partman_bgw.role": _PARTMAN,
    "pg_stat_monitor.pgsm_enable_query_plan": _NOT_THERE,
    "pg_stat_monitor.pgsm_max_buckets": _NOT_THERE,
}
#: What describes another parameter in the contract.
_MIXED_UP = {
    "io_method": {
        "description": f"EXPERIMENTAL: Selects how asynchronous I/O is done. Version 18 and up only.{_RESTARTS}"
    },
    "io_workers": {"title": "io_workers"},
}


def served(contract: Callable[[str], Schema], offered: Sequence[str]) -> dict[str, Schema]:
    """The schemas by name, in the form that clients need. `contract` gives a named schema of the contract, `offered`
    are the majors that hosts have: keys that need another one stay, so that what is written for it is still valid."""
    schemas = {name: _closed(contract(f"json-schema-{name}")) for name in _SERVED}
    properties = schemas["pg"]["properties"]
    for group in (properties, *(properties[name]["properties"] for name in GROUPS)):
        group |= {name: _true(name, key, offered) for name, key in group.items() if "properties" not in key}
    for (field, name), (least, most) in BOUNDS.items():
        if schema := schemas.get(field.removesuffix("-settings")):
            schema["properties"][name] |= {"minimum": least, "maximum": most}
    return schemas


def _closed(schema: Schema) -> Schema:
    return {
        "type": "object",
        "title": schema["title"],
        "properties": schema["properties"],
        "additionalProperties": False,
    }


def _true(name: str, key: Schema, offered: Sequence[str]) -> Schema:
    key = key | _MIXED_UP.get(name, {})
    said = key["description"]
    if name in _DEFAULTS:
        said = re.sub(r"The default is `.*?`( \(upstream default\))?", f"The default is {_DEFAULTS[name]}", said)
    since = SINCE.get(name, 0)
    if name in _RELOADED_BY_18:
        said = said.replace(_RESTARTS, "" if since >= 18 else f"{_RESTARTS[:-1]} before PostgreSQL 18.")
    more = [f"It must be {NARROWER[name][0]}."] if name in NARROWER else []
    more += [_NOTES[name]] if name in _NOTES else []
    if since and not any(int(version) >= since for version in offered):
        more.append("No host has such a version now.")
    return key | {"description": " ".join([said.rstrip(".") + ".", *more])}
