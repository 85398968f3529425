"""Connection pools: defaults, PgBouncer's settings, and what a service's connections can bear."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pgherd.errors import Conflict
from pgherd.spec import LOOK_UPS, SUPERUSERS, Pool, Setting

MODE = "transaction"
SIZE = 10
#: Connections of a service that no pool gets.
RESERVE = SUPERUSERS + LOOK_UPS


def parameters(settings: Mapping[str, Any]) -> dict[str, Setting]:
    """`pgbouncer-settings` as a spec carries them: the contract's names, lists as one text with commas."""
    return {name: ",".join(value) if isinstance(value, list) else value for name, value in settings.items()}


def check_sum(pools: Iterable[Pool], settings: Mapping[str, Any], max_connections: int, changing: str) -> None:
    """Raise Conflict, with the numbers, when the pools may ask for more connections than the service has.

    `changing` is the request's field that is to blame. A pool for connections without a pool of their own
    (`autodb_pool_size`) counts as one pool.
    """
    sizes = {pool.name: pool.size for pool in pools}
    if settings.get("autodb_pool_size"):
        sizes["autodb_pool_size"] = settings["autodb_pool_size"]
    needed, most = sum(sizes.values()), max_connections - RESERVE
    if sizes and needed > most:
        shown = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items())[:10])
        more = f" and {len(sizes) - 10} more" if len(sizes) > 10 else ""
        raise Conflict(
            f"{changing}: the pools would take {needed} connections ({shown}{more}), but {most} are left for them:"
            f" the service has {max_connections}, of which {RESERVE} are kept for the platform."
        )
