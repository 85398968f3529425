"""Waiting for the end of an operation or a state of a service, with progress for whoever looks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pgherd.cli import screen
from pgherd.cli.client import Api, document
from pgherd.cli.outcome import CliError, Exit

POLL = 0.5  # seconds between two looks at least; the API itself holds a look at a pending operation for up to 2 s
PATIENCE = 30.0  # seconds that the API may be away while we wait, as it is during `pgherd restart`

Say = Callable[[str], None]


@contextmanager
def progress(title: str) -> Iterator[Say]:
    """Show that something goes on: a spinner with the time on a terminal, a line for each change otherwise."""
    if sys.stderr.isatty():
        yield from _spinner(title)
        return
    last = ""

    def say(text: str) -> None:
        nonlocal last
        if text != last and not screen.as_json():
            screen.note(f"{title}: {text}")
        last = text

    yield say


def _spinner(title: str) -> Iterator[Say]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    whole = Column(no_wrap=True, min_width=len(title))
    cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        SpinnerColumn(table_column=Column(min_width=1)),
        TextColumn("{task.description}", table_column=whole),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("{task.fields[text]}", table_column=cut),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task(escape(screen.visible(title)), total=None, text="")
        yield lambda text: bar.update(task, text=escape(screen.visible(text)))


def until_operation_ends(
    api: Api,
    operation: dict[str, Any],
    title: str,
    *,
    service: str = "",
    timeout: float | None = None,
    now: Callable[[], str] | None = None,
) -> dict[str, Any]:
    """Wait until an operation is no longer pending and return it. Raises CliError when it did not succeed.

    `service` names the service whose nodes are shown meanwhile, unless `now` says what to show. `timeout` in seconds.
    """
    ident = operation["id"]
    late = "The operation still goes on.", f"Look at it: pgherd operation show {ident} --wait"
    with progress(title) as say, going_on(ident):
        look = _Look(timeout, answered=True)
        while operation["state"] == "pending":
            if now or service:
                say(now() if now else _nodes_now(api, service))
            operation = look.at(lambda: api.call("get-operation", ident), *late)
            look.rest(operation["state"] == "pending")
    if operation["state"] != "success":
        raise failed(operation, service)
    return operation


@contextmanager
def going_on(operation_id: str) -> Iterator[None]:
    """Make of Ctrl-C a word that the operation goes on, and how to look at it."""
    try:
        yield
    except KeyboardInterrupt:
        raise CliError(
            Exit.INTERRUPTED,
            "No longer waiting; the operation goes on.",
            f"Look at it: pgherd operation show {operation_id} --wait",
        ) from None


@contextmanager
def sending(service: str) -> Iterator[None]:
    """Make of Ctrl-C, while the API holds its answer, a word that the request may have been accepted."""
    try:
        yield
    except KeyboardInterrupt:
        raise CliError(
            Exit.INTERRUPTED,
            "Interrupted before the API answered; it may have accepted the request.",
            f"Look at it: pgherd service show {service}",
        ) from None


def failed(operation: dict[str, Any], service: str = "") -> CliError:
    """The error for an operation that ended without success."""
    state, reason = operation["state"], operation.get("reason", "unknown")
    message = operation.get("message") or "the API gave no message"
    hint = f"Look at the service: pgherd service show {service}" if service else ""
    code = Exit.TIMED_OUT if state == "timeout" else Exit.FAILED
    return CliError(code, f"The operation ended as {state} ({reason}): {message}", hint)


def until_service_is(api: Api, name: str, wanted: str, timeout: float | None) -> dict[str, Any] | None:
    """Wait for a service's state, or for `deleted`. Returns the service, or None once it is deleted.

    Raises CliError with NOT_FOUND if it does not exist, and with FAILED if it is powered off.
    """
    known = [*document()["components"]["schemas"]["enum-service-state"]["enum"], "deleted"]
    if wanted not in known:
        raise CliError(Exit.USAGE, f"There is no state {wanted!r}.", f"There are {', '.join(known)}.")
    with progress(f"Waiting until {name} is {wanted}") as say:
        look = _Look(timeout, answered=False)
        while True:
            try:
                service = look.at(lambda: api.call("get-dbaas-service-pg", name), f"{name} is not {wanted} yet.")
            except CliError as error:
                if error.code is Exit.NOT_FOUND and wanted == "deleted":
                    return None
                raise
            if service.get("state") == wanted:
                return dict(service)
            if service.get("state") == "poweroff" and wanted not in ("poweroff", "deleted"):
                hint = f"Look at it: pgherd service show {name}"
                raise CliError(Exit.FAILED, f"{name} is powered off: {describe_nodes(service)}", hint)
            say(describe_nodes(service))
            look.rest(True)


class _Look:
    """Looks at the API again and again: not too often, not after the deadline.

    Once the API has answered (`answered`: it has before), it may be away for a while.
    """

    def __init__(self, timeout: float | None, *, answered: bool) -> None:
        self._last = time.monotonic()
        self._deadline = None if timeout is None else self._last + timeout
        self._seen = self._last if answered else float("-inf")
        self._late = self._hint = ""

    def at(self, call: Callable[[], Any], late: str, hint: str = "") -> Any:
        """What the call answers, once it does. `late` and `hint` are told when the time is over at the next rest."""
        self._late, self._hint = late, hint
        while True:
            self._last = time.monotonic()
            try:
                answer = call()
            except CliError as error:
                if error.code is not Exit.UNREACHABLE or time.monotonic() - self._seen > PATIENCE:
                    raise
                self.rest(True)
                continue
            self._seen = time.monotonic()
            return answer

    def rest(self, go_on: bool) -> None:
        """Wait for the time of the next look. Raises CliError when there is none before the deadline."""
        if not go_on:
            return
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise CliError(Exit.TIMED_OUT, f"The time to wait is over. {self._late}", self._hint)
        pause = max(0.0, self._last + POLL - now)
        time.sleep(pause if self._deadline is None else min(pause, self._deadline - now))


def _nodes_now(api: Api, service: str) -> str:
    try:
        return describe_nodes(api.call("get-dbaas-service-pg", service))
    except CliError:
        return ""


def describe_nodes(service: dict[str, Any]) -> str:
    """State, step and reason of a service's nodes in one line."""
    parts = [describe_node(node) for node in service.get("node-states") or []]
    return f"{service.get('state', 'unknown')}" + (f" - {'; '.join(parts)}" if parts else "")


def describe_node(node: dict[str, Any]) -> str:
    """State, step and reason of one node: `demo-1 setting_up_vm (start): why`."""
    text = f"{node.get('name', '?')} {node.get('state', 'unknown')}"
    text += f" ({node['step']})" if node.get("step") else ""
    return text + (f": {node['reason']}" if node.get("reason") else "")


def service_of(operation: dict[str, Any]) -> str:
    """The name of the service that an operation is about, or nothing."""
    link = (operation.get("reference") or {}).get("link") or ""
    found = re.fullmatch(r"/v2/dbaas-postgres/([^/]+)(/.*)?", link)
    return found[1] if found else ""
