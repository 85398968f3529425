"""Extensions that the platform itself puts into the databases of a service, and takes out again.

A library that waits for a restart is waited for: after it, the node is converged again. Nothing of a tenant runs here:
scripts of these extensions name everything by its schema, and event triggers are for superusers alone to make.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Protocol

from pgherd.drivers import postgres
from pgherd.drivers.postgres import Cluster, Observation, SqlRefused
from pgherd.spec import NodeSpec

log = logging.getLogger("pgherd.agent")

_OPTIONS = {"statement_timeout": "60000", "lock_timeout": "10000", "client_min_messages": "error"}
_TIMESCALE = r"""
SELECT 'CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public' WHERE to_regnamespace('public') IS NOT NULL \gexec
-- The Apache edition brings a job that it cannot carry out.
SELECT 'DELETE FROM _timescaledb_config.bgw_job WHERE proc_name = ''policy_job_stat_history_retention'''
  WHERE to_regclass('_timescaledb_config.bgw_job') IS NOT NULL \gexec
"""
_AUDIT = "CREATE EXTENSION IF NOT EXISTS pgaudit SCHEMA pg_catalog;"
_NO_AUDIT = "DROP EXTENSION IF EXISTS pgaudit;"
#: Only the platform comes there; each login through a pool would be a line.
_NOT_OURS = "ALTER DATABASE postgres SET pgaudit.log = 'none';"
_BEGUN = -1


class Noted(Protocol):
    """What has been done: defaultdb was given TimescaleDB; databases up to this oid were given pgaudit (0: none)."""

    timescale: bool
    audited: int


def are_current(spec: NodeSpec, seen: Observation, noted: Noted) -> bool:
    """Whether nothing is to be done about pgaudit; a database may have come since."""
    if not spec.audit:
        return noted.audited == 0
    return seen.newest_database <= noted.audited or not _has(seen, "pgaudit")


def ensure(cluster: Cluster, spec: NodeSpec, seen: Observation, noted: Noted) -> Iterator[None]:
    """Create and drop what is wished; stops after each change of `noted`, for it to be kept."""
    if spec.timescale and not noted.timescale and _has(seen, "timescaledb"):
        _run(cluster, "defaultdb", _TIMESCALE)
        noted.timescale = True
        yield
    if are_current(spec, seen, noted):
        return
    after = noted.audited if spec.audit else 0
    if after == 0:
        noted.audited = _BEGUN
        yield
    if spec.audit:
        _run(cluster, "postgres", _NOT_OURS)
    databases = _databases(cluster)
    for oid, name in databases:
        if oid > after:
            _run(cluster, name, _AUDIT if spec.audit else _NO_AUDIT)
    # The one that `newest_database` may see beside these is `postgres`.
    noted.audited = max([seen.newest_database, *(oid for oid, _ in databases)]) if spec.audit else 0
    yield


def _has(seen: Observation, library: str) -> bool:
    return library in seen.preloaded.split(",")


def _databases(cluster: Cluster) -> list[tuple[int, str]]:
    """Every database that somebody can connect to, and template1, from which tenants make new ones."""
    query = """
    SELECT coalesce(json_agg(json_build_array(oid::bigint, datname) ORDER BY oid), '[]') FROM pg_database
      WHERE datallowconn AND datname <> 'postgres';
    """
    return [(int(oid), str(name)) for oid, name in json.loads(postgres.psql(cluster, query))]


def _run(cluster: Cluster, database: str, script: str) -> None:
    """In one database; one that refuses for a reason of its own is left alone and told of in the log."""
    try:
        postgres.psql(cluster, script, database=database, options=_OPTIONS, timeout=90)
    except SqlRefused as error:
        log.warning("%s: an extension is refused: %s", cluster.directory.name, error.detail)
