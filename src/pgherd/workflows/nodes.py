"""Steps that several operations share: certificates, specs, and waiting for the hosts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from pgherd.errors import Conflict, Fault
from pgherd.model import certificates, features
from pgherd.model.name import network
from pgherd.model.plan import PLANS, memory
from pgherd.model.pool import parameters
from pgherd.model.service import Secrets, Wish
from pgherd.sealing import seal
from pgherd.settings import Settings
from pgherd.spec import About, Admin, Desired, Job, NodeSpec, Pool, Tls
from pgherd.store.db import Transaction
from pgherd.workflows.origins import origin_for
from pgherd.workflows.repositories import ensure_repository, repository_for
from pgherd.workflows.run import Run


class NodeFailed(Conflict):
    """A node cannot run under its spec; trying again does not help."""


def service_row(tx: Transaction, run: Run) -> DictRow:
    """The service's row."""
    row = tx.row("service_by_id", id=run.service)
    if row is None:
        raise Fault("The service's record is gone.")
    return row


def wish_of(row: DictRow) -> Wish:
    """The wish in a service's row."""
    return msgspec.convert(row["wish"], Wish)


def wish_in_turn(tx: Transaction, run: Run) -> Wish:
    """What the service shall be by this operation: without what updates that wait behind it ask for."""
    row = tx.row("wish_in_turn", id=run.operation)
    assert row is not None
    return wish_of(row)


def secrets_of(run: Run, row: DictRow) -> Secrets:
    """The opened secrets of a service's row."""
    return msgspec.json.decode(run.app.vault.open(row["secrets"]), type=Secrets)


def certificate_hosts(settings: Settings, service: str, organization: str) -> list[str]:
    """Every name and address under which the service is reached."""
    hosts = [settings.host_of(service, organization), settings.advertised_host]
    if settings.loopback:
        hosts += ["localhost", "127.0.0.1", "::1"]
    return list(dict.fromkeys(hosts))


def ensure_certificates(run: Run) -> None:
    """The service has a certificate of its organization's CA for every name under which it is reached."""
    with run.app.db.transaction() as tx:
        row = service_row(tx, run)
        organization = tx.row("organization_by_id", id=run.organization)
        assert organization is not None
    hosts = certificate_hosts(run.app.settings, row["name"], organization["name"])
    if certificates.fits(row["certificate"], organization["ca_certificate"], hosts):
        return
    ca_key = run.app.vault.open(organization["ca_key"]).decode()
    certificate, key = certificates.issue(organization["ca_certificate"], ca_key, row["name"], hosts)
    with run.transaction() as tx:
        known = secrets_of(run, service_row(tx, run))
        renewed = msgspec.structs.replace(known, tls_key=key)
        sealed = run.app.vault.seal(msgspec.json.encode(renewed))
        tx.run("set_certificate", id=run.service, certificate=certificate, secrets=sealed)


def ensure_specs(run: Run) -> None:
    """Every node's host is told what the service shall be; a spec that says so already is left alone."""
    with run.transaction() as tx:
        row = service_row(tx, run)
        organization = tx.row("organization_by_id", id=run.organization)
        assert organization is not None
        wish, pools = wish_in_turn(tx, run), pools_of(tx, run.service)
        known = secrets_of(run, row).with_monitor()
        if known != secrets_of(run, row):  # a service of a version that knew nothing of Prometheus
            sealed_anew = run.app.vault.seal(msgspec.json.encode(known))
            tx.run("set_certificate", id=run.service, certificate=row["certificate"], secrets=sealed_anew)
        changed = False
        ensure_repository(run.app, tx, run.service)
        for node in tx.rows("nodes", service_id=run.service):
            sealed = _sealed(tx, node, row["certificate"], known)
            told: dict[str, Any] = node["spec"] or {}
            whole = msgspec.structs.replace(
                _spec(run, row, wish, pools, node, sealed, organization["name"]),
                repository=repository_for(
                    run.app, tx, run.service, PLANS[wish.plan], node["public_key"], told.get("repository")
                ),
                jobs=msgspec.convert(told.get("jobs", []), list[Job]),  # other operations' affair
                origin=origin_for(run, tx, row, node),
                confirmed=told.get("confirmed", ""),
            )
            spec = msgspec.to_builtins(whole)
            del spec["generation"]
            if spec != node["spec"]:
                tx.run("write_spec", id=node["id"], spec=Jsonb(spec))
                changed = True
        if changed:
            tx.run("wake_hosts", service_id=run.service)


def _sealed(tx: Transaction, node: DictRow, certificate: str, known: Secrets) -> dict[str, str]:
    """The node's secrets sealed for its host; sealed anew only when they or the host's key changed."""
    if not node["public_key"]:
        raise Fault(f"Host {node['host']} has not registered yet.", hint="Is its agent running?")
    marks = {"certificate": certificate, "public_key": node["public_key"], "verifier_of": known.verifier[:32]}
    marks["monitor_of"] = known.monitor_hash[:29]
    found: dict[str, str] = node["sealed"] or {}
    if any(found.get(name) != value for name, value in marks.items()):
        found = {
            **marks,
            "tls_key": seal(node["public_key"], known.tls_key),
            "verifier": seal(node["public_key"], known.verifier),
            "monitor": seal(node["public_key"], known.monitor_hash),
        }
        tx.run("write_sealed", id=node["id"], sealed=Jsonb(found))
    return found


def _spec(
    run: Run, row: DictRow, wish: Wish, pools: list[Pool], node: DictRow, sealed: dict[str, str], organization: str
) -> NodeSpec:
    plan = PLANS[wish.plan]
    settings = run.app.settings
    return NodeSpec(
        node_id=str(node["id"]),
        service_id=str(run.service),
        generation=0,
        node_name=node["name"],
        # A service that is stopped stays so: only the operations that stop and start it change that (`power`).
        desired="stopped" if (node["spec"] or {}).get("desired") == "stopped" else "running",
        version=wish.version,
        port=row["first_port"],
        memory=memory(
            plan,
            node["facts"]["memory_bytes"],
            settings.memory_cap_percent,
            wish.work_mem,
            wish.shared_buffers_percentage,
        ),
        max_connections=plan.max_connections,
        settings=features.parameters(wish),
        timescale=wish.variant == features.TIMESCALE,
        audit=features.is_audited(wish),
        ip_filter=[network(entry) for entry in wish.ip_filter],
        loopback=settings.loopback,
        admin=Admin(wish.admin, sealed["verifier"]),
        tls=Tls(row["certificate"], sealed["tls_key"]),
        disk_bytes=plan.disk_bytes,
        memory_bytes=plan.memory_bytes,
        cpus=plan.cpus,
        restart=node["restart"],
        pools=pools,
        pooler=parameters(wish.pgbouncer_settings),
        about=About(organization, row["name"], msgspec.to_builtins(wish)),
        monitor=sealed["monitor"],
    )


def change_specs(run: Run, change: Callable[[DictRow], dict[str, Any]], of: tuple[Desired, ...] = ("running",)) -> None:
    """Every node's host is told these fields of the spec, and of the rest what it was told last.

    So that a task or a pool does not bring a change into force that another operation, still waiting, stands for.
    `change` gets the node's row and answers only fields that shall differ; `of`: what nodes may be wished to be.
    """
    with run.transaction() as tx:
        changed = False
        for node in tx.rows("nodes", service_id=run.service):
            if node["spec"] is None or node["spec"]["desired"] not in of:
                raise Conflict("The service does not run; nothing can be changed in it.")
            spec = node["spec"] | change(node)
            if spec != node["spec"]:
                tx.run("write_spec", id=node["id"], spec=Jsonb(spec))
                changed = True
        if changed:
            tx.run("wake_hosts", service_id=run.service)


def pools_of(tx: Transaction, service: UUID) -> list[Pool]:
    """The pools that a service shall have, by name."""
    return [msgspec.convert(row, Pool) for row in tx.rows("pools", service_id=service)]


def nodes_in_force(run: Run) -> str | None:
    """None when every node runs under its newest spec; else what is waited for. Raises NodeFailed."""
    with run.app.db.transaction() as tx:
        nodes = tx.rows("nodes", service_id=run.service)
    for node in nodes:
        status: dict[str, Any] = node["status"] or {}
        if status.get("refused", 0) >= node["generation"]:
            raise NodeFailed(f"Node {node['name']}: {clean(status['reason'])}")
        if status.get("generation", -1) < node["generation"]:
            return f"{node['name']}: {status.get('reason') or status.get('step') or 'waits for its host'}"
        if status["state"] != node["spec"]["desired"] or status["restart"] != node["restart"]:
            return f"{node['name']}: {status['state']} {status.get('step', '')}"
    return None


def clean(reason: str) -> str:
    """A host's words, which a tenant may have influenced, as one bounded printable line."""
    return re.sub(r"[^\x20-\x7e]+", " ", reason)[:300] or "no reason given"


def start_nodes(run: Run) -> None:
    """The specs are in force on every host."""
    ensure_specs(run)
    run.until(nodes_in_force)


def restart_where_pending(run: Run) -> None:
    """Parameters that wait for a restart are in force."""

    def waiting(node: DictRow) -> str:
        names: list[str] = node["status"]["pending_restart"]
        return f"pg-settings: PostgreSQL did not take {clean(', '.join(names))}" if names else ""

    restart_where(run, waiting)


def restart_where(run: Run, waiting: Callable[[DictRow], str]) -> None:
    """Nodes with something that waits for a restart were restarted; the service is `rebuilding` only meanwhile.

    `waiting` says how it fails when that is so even after a restart, empty: nothing waits. Raises NodeFailed.
    """
    with run.transaction() as tx:
        nodes = tx.rows("nodes", service_id=run.service)
        pending = [node for node in nodes if waiting(node)]
        stuck = [node for node in pending if node["restart_generation"] == node["generation"]]
        if stuck:
            raise NodeFailed(f"{waiting(stuck[0])} even after a restart.")
        for node in pending:
            tx.run("ask_restart", id=node["id"])
        if pending:
            tx.run("set_phase", id=run.service, phase="rebuilding")
            tx.run("wake_hosts", service_id=run.service)
    run.until(nodes_in_force)
