"""What every resource of Terraform's provider has in common: its two HTTP clients, and how it plans and applies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import requests
from exoscale_auth import ExoscaleV2Auth

from tests.contract.answers import check
from tests.plugins.instance import until

Values = dict[str, Any]


class _Unknown:
    """A value that is known after apply."""

    def __repr__(self) -> str:
        return "(known after apply)"


UNKNOWN = _Unknown()
OPERATION = re.compile(r"/operation/[0-9a-f-]+$")


class Wire:
    """The provider's two HTTP clients with the variables of `pgherd env --terraform`, and a list of their calls."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.zone = environ["EXOSCALE_ZONE"]
        self._endpoint = environ["EXOSCALE_API_ENDPOINT"]
        self._auth = ExoscaleV2Auth(environ["EXOSCALE_API_KEY"], environ["EXOSCALE_API_SECRET"])
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.proxies = {"https": environ["HTTPS_PROXY"]}
        self._session.verify = environ["SSL_CERT_FILE"]
        self._session.hooks["response"].append(check)
        self.calls: list[str] = []

    def v2(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the older half, which knows no other host than this one; None for a 404."""
        return self._send(method, f"https://api-{self.zone}.exoscale.com/v2", path, body)

    def v3(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the newer half, after `switch` by the endpoint that the zone names."""
        return self._send(method, self._switched, path, {} if body is None and method in ("POST", "PUT") else body)

    def switch(self) -> None:
        """What every action of the newer half begins with."""
        zones = self._send("GET", self._endpoint, "/zone", None, signed=False)["zones"]
        (self._switched,) = [zone["api-endpoint"] for zone in zones if zone["name"] == self.zone]

    def wait(self, operation: Values) -> None:
        """Poll until the end, as the newer half does; a success that came at once is not looked at again."""
        last = operation
        while last["state"] == "pending":
            last = until(lambda: self._ended(operation["id"]), 60, f"the end of {operation}")
        assert last["state"] == "success", last

    def _ended(self, operation: str) -> Any:
        found = self.v3("GET", f"/operation/{operation}")
        return found if found["state"] != "pending" else None

    def _send(self, method: str, base: str, path: str, body: Any, *, signed: bool = True) -> Any:
        request = requests.Request(method, base + path, json=body, auth=self._auth if signed else None)
        answer = self._session.send(
            self._session.prepare_request(request), timeout=60, verify=self._session.verify, proxies=self._proxies(base)
        )
        self.calls.append(f"{method} {OPERATION.sub('/operation', path)}")
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, f"{method} {path} {body}: {answer.status_code} {answer.text}"
        return answer.json()

    def _proxies(self, base: str) -> dict[str, str]:
        return dict(self._session.proxies) if base.startswith("https:") else {}


class Resource:
    """What the plugin framework does with any resource. `state` is None while it does not exist."""

    #: Attribute -> (optional, computed, keeps its value while others change).
    attributes: ClassVar[Mapping[str, tuple[bool, bool, bool]]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    replacing: frozenset[str] = frozenset()

    def __init__(self, wire: Wire, **config: Any) -> None:
        self.wire = wire
        self.config: Values = config
        self.state: Values | None = None

    def planned(self) -> tuple[Values, dict[str, Any]]:
        """What apply is to make of it, and the differences: attribute -> (is, shall be)."""
        prior = self.state or {}
        wanted = {}
        for name, (_, computed, _) in self.attributes.items():
            given = self.config.get(name)
            given = self.defaults.get(name) if given is None else given
            wanted[name] = prior.get(name) if given is None and computed else given
        differs = {name: (prior.get(name), wanted[name]) for name in wanted if wanted[name] != prior.get(name)}
        if self.state is None or differs:
            for name, (_, computed, keeps) in self.attributes.items():
                free = self.config.get(name) is None and self.defaults.get(name) is None and computed
                if free and not (keeps and self.state is not None):
                    wanted[name] = UNKNOWN
        return wanted, differs

    def plan(self) -> dict[str, Any]:
        """`terraform plan`: refresh, then the differences."""
        self.refresh()
        return self.planned()[1] if self.state is not None else {"": "does not exist"}

    def apply(self) -> None:
        """`terraform apply` of this resource alone. What it promised in the plan must hold afterwards."""
        self.refresh()
        wanted, differs = self.planned()
        if self.state is not None and self.replacing & set(differs):
            self.destroy()
            wanted, differs = self.planned()
        if self.state is None:
            self.state = self.create(dict(wanted))
        elif differs:
            self.state = self.update(self.state, dict(wanted))
        for name, value in wanted.items():
            assert value is UNKNOWN or self.state[name] == value, f"inconsistent result after apply: {name}"
        assert UNKNOWN not in self.state.values(), f"unknown value after apply: {self.state}"

    def refresh(self) -> None:
        """Read the state again, if there is one."""
        if self.state is not None:
            self.state = self.read(dict(self.state))

    def create(self, planned: Values) -> Values:
        raise NotImplementedError

    def read(self, state: Values) -> Values | None:
        raise NotImplementedError

    def update(self, state: Values, planned: Values) -> Values:
        raise NotImplementedError

    def destroy(self) -> None:
        raise NotImplementedError
