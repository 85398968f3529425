"""What a service's owner should know, in the contract's words: pure.

The contract has two types of notifications, for a version whose support ends and for a service that is removed some
time after it was powered off, and clients know no other. So a service that does not run has the second, everything
else the first; `metadata.kind` says what it is about.
"""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
from psycopg.rows import DictRow

from pgherd.model.plan import GIB, Plan
from pgherd.model.service import how_to_start
from pgherd.spec import DISK_NOTICE, DISK_READ_ONLY, DISK_WRITABLE, Verification, disk_limit
from pgherd.workflows.verify import summary

_WAY_OUT = (
    " New transactions are read-only; to delete data all the same, SET default_transaction_read_only = off in a"
    " session, then DROP or TRUNCATE."
)


def timestamp(moment: datetime.datetime) -> str:
    """RFC 3339 in UTC with a Z, which the Go clients insist on."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def notifications(row: DictRow, plan: Plan) -> list[dict[str, Any]]:
    """Of a service's view."""
    if row["stopped_at"] is not None:
        message = f"The service was stopped at {timestamp(row['stopped_at'])}. {how_to_start(row['name'])}"
        return [_note("notice", "service_powered_off_removal", message, {"kind": "stopped"})]
    if row["phase"] == "poweroff":
        message = f"The service was not created: {row['notice']} Delete it and create it again."
        return [_note("warning", "service_powered_off_removal", message, {"kind": "not-created"})] * bool(row["notice"])
    disk = [note for node in row["nodes"] if (note := _disk(node["status"] or {}, plan))][:1]
    return disk + _backups(row["verification"])


def _backups(verification: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What the last proof of the backups found, unless that they are sound."""
    if verification is None or verification["state"] == "sound":
        return []
    kind = "backups-damaged" if verification["state"] == "damaged" else "backups-not-verified"
    about = {"kind": kind, "at": timestamp(datetime.datetime.fromisoformat(verification["at"]))}
    message = f"Backups are at risk: {summary(msgspec.convert(verification['report'], Verification))}"
    return [_note("warning", "service_end_of_life", message, about)]


def _disk(status: dict[str, Any], plan: Plan) -> dict[str, Any] | None:
    used, size = status.get("disk_used", 0), disk_limit(plan.disk_bytes, status.get("disk_capacity", 0))
    larger, whole = "a larger plan", f"the plan's {size / GIB:.0f} GiB of disk"
    if size < plan.disk_bytes:
        larger, whole = "a larger file system", f"the {size / GIB:.1f} GiB of the service's own file system"
    amount = f"{used / GIB:.1f} of {whole} are used."
    about = {"disk-used": used, "disk-size": size, "limited-by": "plan" if size == plan.disk_bytes else "file-system"}
    if status.get("read_only") == "plan":
        message = f"{amount}{_WAY_OUT} It ends by itself below {DISK_WRITABLE} %; {larger} ends it at once."
        return _note("warning", "service_end_of_life", message, {"kind": "disk-full"} | about)
    if status.get("read_only") == "host":
        message = f"The host's disk runs short and this service grew fastest; {amount}{_WAY_OUT} It ends by itself."
        return _note("warning", "service_end_of_life", message, {"kind": "host-disk-full"} | about)
    if used * 100 >= size * DISK_NOTICE:
        message = f"{amount} At {DISK_READ_ONLY} % it becomes read-only: delete data or take {larger}."
        return _note("notice", "service_end_of_life", message, {"kind": "disk-nearly-full"} | about)
    return None


def _note(level: str, kind: str, message: str, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"level": level, "type": kind, "message": message[:1024], "metadata": metadata}
