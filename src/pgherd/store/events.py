"""Events of what an operator does on the machine itself; those of the API's calls are `api.audit`'s."""

from __future__ import annotations

from pgherd.store.db import Transaction


def leave_event(tx: Transaction, command: str, subject: str) -> bool:
    """Whether there is an event now: there is none as long as the instance has no organization."""
    default = tx.row("organization_by_name", name="default")
    if default is None:
        return False
    who = {"organization_id": default["id"], "key": "-", "remote": "this machine"}
    tx.row("insert_event", **who, command=command, subject=subject, result="accepted")
    return True
