"""The provider's resources, modelled from their behaviour on the wire and from what they compare (wire.md).

`exoscale_dbaas` (type pg) and the resources of its users, databases and pools make the provider's calls in its order.
`plan` answers with what the provider would show as a difference; the point of the tests is that it is empty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jsonschema_rs

from tests.contract.terraform_plugin import UNKNOWN, Resource, Values
from tests.plugins.instance import until

_SETTINGS = {"pg_settings": "pg", "pgbouncer_settings": "pgbouncer", "pglookout_settings": "pglookout"}
_FREE, _KEPT = (True, True, False), (True, True, True)


class Service(Resource):
    """`exoscale_dbaas` of type pg, by the older half. `block` of the configuration is flat here."""

    attributes: ClassVar[Mapping[str, tuple[bool, bool, bool]]] = {
        "name": (False, False, False),
        "plan": (False, False, False),
        "termination_protection": (True, True, False),
        "maintenance_dow": _KEPT,
        "maintenance_time": _KEPT,
        "admin_username": (True, False, False),
        "admin_password": (True, False, False),
        "backup_schedule": _FREE,
        "ip_filter": _FREE,
        "version": _FREE,
        **dict.fromkeys(_SETTINGS, _FREE),
        "created_at": (False, True, True),
        "ca_certificate": (False, True, True),
        "disk_size": (False, True, True),
        **dict.fromkeys(("node_cpus", "node_memory", "nodes", "state", "updated_at"), (False, True, False)),
    }
    replacing = frozenset({"name"})
    defaults: ClassVar[Mapping[str, Any]] = {"termination_protection": True}
    #: Whether pgbouncer_settings go in a call of their own after create, as some versions of the provider do it.
    pgbouncer_after = True

    @property
    def path(self) -> str:
        return f"/dbaas-postgres/{self.config['name']}"

    def create(self, planned: Values) -> Values:
        self._check_settings(planned)
        body: Values = {"plan": planned["plan"], "termination-protection": planned["termination_protection"]}
        if planned["maintenance_dow"] is not UNKNOWN:
            body["maintenance"] = {"dow": planned["maintenance_dow"], "time": planned["maintenance_time"]}
        for ours in ("version", "admin_username", "admin_password", "ip_filter"):
            if planned[ours] not in (None, UNKNOWN):
                body[ours.replace("_", "-")] = planned[ours]
        if planned["backup_schedule"] is not UNKNOWN:
            body["backup-schedule"] = _schedule(planned["backup_schedule"])
        later = {}
        for ours in _SETTINGS:
            if planned[ours] is not UNKNOWN:
                target = later if ours == "pgbouncer_settings" and self.pgbouncer_after else body
                target[ours.replace("_", "-")] = json.loads(planned[ours])
        self.wire.v2("POST", self.path, body)
        shown = self._running()
        if later:
            self.wire.switch()
            self.wire.wait(self.wire.v3("PUT", self.path, later))
            shown = self._running()
        known = {name: value for name, value in planned.items() if value is not UNKNOWN}
        return self._computed(shown) | self._ca() | {name: _go(shown, name) for name in _SETTINGS} | known

    def read(self, state: Values) -> Values | None:
        shown = self.wire.v2("GET", self.path)
        if shown is None:
            return None
        kept = {name: state[name] for name in ("name", "admin_username", "admin_password")}
        settings = {name: self._managed(state[name], shown, name) for name in _SETTINGS}
        return self._computed(shown) | self._ca() | kept | settings

    def update(self, state: Values, planned: Values) -> Values:
        self._check_settings(planned)
        body: Values = {}
        if any(planned[name] not in (UNKNOWN, state[name]) for name in ("maintenance_dow", "maintenance_time")):
            body["maintenance"] = {"dow": planned["maintenance_dow"], "time": planned["maintenance_time"]}
        for name in ("plan", "termination_protection"):
            if planned[name] != state[name]:
                body[name.replace("_", "-")] = planned[name]
        for name in _SETTINGS:
            if planned[name] not in (UNKNOWN, state[name]):
                body[name.replace("_", "-")] = json.loads(planned[name])
        if planned["ip_filter"] != state["ip_filter"]:
            body["ip-filter"] = [] if planned["ip_filter"] in (UNKNOWN, None) else planned["ip_filter"]
        slot = planned["backup_schedule"]
        body["backup-schedule"] = _schedule(state["backup_schedule"] if slot is UNKNOWN else slot)
        self.wire.v2("PUT", self.path, body)
        shown = self.wire.v2("GET", self.path)
        known = {name: value for name, value in planned.items() if value is not UNKNOWN}
        return state | self._computed(shown) | {name: _go(shown, name) for name in _SETTINGS} | known

    def import_state(self) -> None:
        """`terraform import`: find it in the list, then read it into an empty state."""
        listed = self.wire.v2("GET", "/dbaas-service")["dbaas-services"]
        (found,) = [service for service in listed if service["name"] == self.config["name"]]
        assert (found["type"], found["plan"]) == ("pg", self.config["plan"])
        self.state = self.read(dict.fromkeys(self.attributes) | {"name": found["name"]})

    def destroy(self) -> None:
        self.wire.v2("DELETE", f"/dbaas-service/{self.config['name']}")
        self.state = None

    def _running(self) -> Values:
        """Poll until it runs; every answer on the way must be one that the provider bears."""

        def running() -> Any:
            shown = self.wire.v2("GET", self.path)
            assert shown is not None and shown["state"] != "poweroff", shown
            return shown if shown["state"] == "running" else None

        return dict(until(running, 60, "the service runs"))

    def _computed(self, shown: Values) -> Values:
        return {
            "name": shown["name"],
            "plan": shown["plan"],
            "termination_protection": shown["termination-protection"],
            "maintenance_dow": shown["maintenance"]["dow"],
            "maintenance_time": shown["maintenance"]["time"],
            "backup_schedule": "{backup-hour:02d}:{backup-minute:02d}".format(**shown["backup-schedule"]),
            "ip_filter": sorted(shown["ip-filter"]),  # a set
            "version": shown["version"].split(".")[0],
            "admin_username": None,
            "admin_password": None,
            "created_at": shown["created-at"],
            "disk_size": shown["disk-size"],
            "node_cpus": shown["node-cpu-count"],
            "node_memory": shown["node-memory"],
            "nodes": shown["node-count"],
            "state": shown["state"],
            "updated_at": shown["updated-at"],
        }

    def _ca(self) -> Values:
        return {"ca_certificate": self.wire.v2("GET", "/dbaas-ca-certificate")["certificate"]}

    def _managed(self, known: str | None, shown: Values, name: str) -> str | None:
        """Settings in the state: of those that are in it, what the service shows now; after an import, none."""
        if known is None or name.replace("_", "-") not in shown:
            return None
        now = shown.get(name.replace("_", "-"), {})
        return _marshal({key: now[key] for key in json.loads(known) if key in now})

    def _check_settings(self, planned: Values) -> None:
        """The provider validates with the schemas that the API serves before it sends anything."""
        schemas = self.wire.v2("GET", "/dbaas-settings-pg")["settings"]
        for name, kind in _SETTINGS.items():
            if planned[name] not in (None, UNKNOWN):
                jsonschema_rs.Draft4Validator(schemas[kind]).validate(json.loads(planned[name]))


class LaterService(Service):
    """The same of a version that plans an empty filter where none is configured, and sends PgBouncer's at once."""

    defaults: ClassVar[Mapping[str, Any]] = {**Service.defaults, "ip_filter": []}
    pgbouncer_after = False


def _schedule(text: str) -> Values:
    hour, minute = text.split(":")
    return {"backup-hour": int(hour), "backup-minute": int(minute)}


def _go(shown: Values, name: str) -> str | None:
    value = shown.get(name.replace("_", "-"))
    return None if value is None else _marshal(value)


def _marshal(value: Any) -> str:
    """As `jsonencode` and Go write it: sorted, tight, every number a double, and no angle brackets."""

    def number(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: number(inner) for key, inner in found.items()}
        if isinstance(found, list):
            return [number(inner) for inner in found]
        if isinstance(found, float) and found.is_integer():
            return int(found)
        return found

    text = json.dumps(number(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


jsonencode: Callable[[Any], str] = _marshal


class Part(Resource):
    """What the resources inside a service have in common: the newer half, and waiting for the service."""

    def refresh(self) -> None:
        """Every action of the newer half begins with the zones."""
        self.wire.switch()
        super().refresh()

    def ready(self) -> Values:
        """Wait for a service that runs and has users; then the provider sleeps 10 s, which proves nothing here."""

        def shown() -> Any:
            found = self.wire.v3("GET", f"/dbaas-postgres/{self.config['service']}")
            return found if found["state"] == "running" and found["users"] else None

        return dict(until(shown, 60, "the service runs"))


_REPLACES = (False, False, False)


class User(Part):
    """`exoscale_dbaas_pg_user`."""

    attributes: ClassVar[Mapping[str, tuple[bool, bool, bool]]] = {
        "service": _REPLACES,
        "username": _REPLACES,
        "allow_replication": _FREE,
        "password": (False, True, False),
        "type": (False, True, False),
    }
    replacing = frozenset({"service", "username", "allow_replication"})

    def create(self, planned: Values) -> Values:
        self.ready()
        body: Values = {"username": planned["username"]}
        if planned["allow_replication"] is not UNKNOWN:
            body["allow-replication"] = planned["allow_replication"]
        self.wire.wait(self.wire.v3("POST", f"/dbaas-postgres/{planned['service']}/user", body))
        made = self.read(planned)
        assert made is not None, "the new user is not visible at once"
        return made

    def read(self, state: Values) -> Values | None:
        path = f"/dbaas-postgres/{state['service']}"
        for user in self.wire.v3("GET", path)["users"]:
            if user["username"] == state["username"]:
                revealed = self.wire.v3("GET", f"{path}/user/{user['username']}/password/reveal")
                known = {"allow_replication": user["allow-replication"], "type": user["type"]}
                return state | known | {"password": revealed["password"]}
        return None

    def destroy(self) -> None:
        path = f"/dbaas-postgres/{self.config['service']}"
        pools = self.wire.v3("GET", path)["connection-pools"]
        assert all(pool.get("username") != self.config["username"] for pool in pools), "a pool uses it"
        self.wire.wait(self.wire.v3("DELETE", f"{path}/user/{self.config['username']}"))
        self.state = None


class Database(Part):
    """`exoscale_dbaas_pg_database`. It swaps its two locales and sends one of them only; that is its own affair."""

    attributes: ClassVar[Mapping[str, tuple[bool, bool, bool]]] = {
        "service": _REPLACES,
        "database_name": _REPLACES,
        "lc_collate": (True, False, False),
        "lc_ctype": (True, False, False),
    }
    replacing = frozenset(attributes)

    def create(self, planned: Values) -> Values:
        self.ready()
        body = {"database-name": planned["database_name"]}
        if planned["lc_ctype"] and planned["lc_collate"]:
            body["lc-collate"] = planned["lc_collate"]
        self.wire.wait(self.wire.v3("POST", f"/dbaas-postgres/{planned['service']}/database", body))
        made = self.read(planned)
        assert made is not None, "the new database is not visible at once"
        return made

    def read(self, state: Values) -> Values | None:
        shown = self.wire.v3("GET", f"/dbaas-postgres/{state['service']}")
        return state if state["database_name"] in shown["databases"] else None

    def destroy(self) -> None:
        path = f"/dbaas-postgres/{self.config['service']}"
        self.wire.v3("GET", path)
        self.wire.wait(self.wire.v3("DELETE", f"{path}/database/{self.config['database_name']}"))
        self.state = None


class Pool(Part):
    """`exoscale_dbaas_pg_connection_pool`."""

    attributes: ClassVar[Mapping[str, tuple[bool, bool, bool]]] = {
        "service": _REPLACES,
        "name": _REPLACES,
        "database_name": _REPLACES,
        "username": _KEPT,
        "mode": _KEPT,
        "size": _KEPT,
        "connection_uri": (False, True, False),
    }
    replacing = frozenset({"service", "name", "database_name"})

    def create(self, planned: Values) -> Values:
        self.ready()
        body = {"database-name": planned["database_name"], "name": planned["name"]} | self._optional(planned)
        self.wire.wait(self.wire.v3("POST", f"/dbaas-postgres/{planned['service']}/connection-pool", body))
        made = self.read(planned)
        assert made is not None, "the new pool is not visible at once"
        return made

    def read(self, state: Values) -> Values | None:
        for pool in self.wire.v3("GET", f"/dbaas-postgres/{state['service']}")["connection-pools"]:
            if pool["name"] == state["name"]:
                assert pool["connection-uri"], pool
                return state | {
                    "database_name": pool["database"],
                    "username": pool.get("username", ""),
                    "mode": pool["mode"],
                    "size": pool["size"],
                    "connection_uri": pool["connection-uri"],
                }
        return None

    def update(self, state: Values, planned: Values) -> Values:
        self.ready()
        path = f"/dbaas-postgres/{planned['service']}/connection-pool/{planned['name']}"
        body = {"database-name": planned["database_name"]} | self._optional(planned)
        self.wire.wait(self.wire.v3("PUT", path, body))
        found = self.read(planned)
        assert found is not None
        return found

    def destroy(self) -> None:
        path = f"/dbaas-postgres/{self.config['service']}/connection-pool/{self.config['name']}"
        self.wire.wait(self.wire.v3("DELETE", path))
        self.state = None

    @staticmethod
    def _optional(planned: Values) -> Values:
        """Go leaves empty texts and zeros out."""
        sent = {name: planned[name] for name in ("username", "mode", "size")}
        return {name: value for name, value in sent.items() if value is not UNKNOWN and value}
