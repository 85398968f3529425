"""Whether the API of this instance answers, as a client would see it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from typing import TYPE_CHECKING

from pgherd.drivers.supervisor import Supervisor
from pgherd.errors import Incorrect
from pgherd.instance.poll import until_ready
from pgherd.settings import Settings

if TYPE_CHECKING:
    import requests

_PATIENCE = 30.0


def _connect_address(settings: Settings) -> tuple[str, int]:
    host, port = settings.listen_address
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def api_answers(settings: Settings) -> bool:
    """Whether `GET /v2/zone` names our zone."""
    host, port = _connect_address(settings)
    connection: http.client.HTTPConnection
    if settings.scheme == "https":
        # The certificate is for the clients' name of this host; here only the answer counts.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=2, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/v2/zone")
        answer = connection.getresponse()
        zones = json.loads(answer.read(100_000))["zones"]
        return answer.status == 200 and zones[0]["name"] == settings.zone
    except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError):
        return False
    finally:
        connection.close()


def key_works(settings: Settings, key: str, secret: str) -> bool:
    """Whether the API takes a request that is signed with this key; True as well when it does not answer at all."""
    answer = _get(settings, "/v2/dbaas-service-type", key, secret)
    return answer is None or answer.status_code != 403


def offers_versions(settings: Settings, key: str, secret: str) -> bool:
    """Whether a host has said which versions it has; until then every create would be refused."""
    answer = _get(settings, "/v2/dbaas-service-type/pg", key, secret)
    try:
        return answer is None or answer.status_code != 200 or bool(answer.json()["available-versions"])
    except (ValueError, KeyError, TypeError):
        return True


def unknown_nodes(settings: Settings, key: str, secret: str) -> int:
    """How many nodes the hosts report that the metadata does not know; 0 as well when nobody answers that."""
    answer = _get(settings, "/pgherd/v1/host", key, secret)
    try:
        return sum(len(host["unknown-nodes"]) for host in answer.json()["hosts"]) if answer else 0
    except (ValueError, KeyError, TypeError):
        return 0


def _get(settings: Settings, path: str, key: str, secret: str) -> requests.Response | None:
    """The answer to a signed request to this machine's API; None when there is none."""
    import requests
    from exoscale_auth import ExoscaleV2Auth  # type: ignore[import-untyped]

    host, port = _connect_address(settings)
    place = f"[{host}]" if ":" in host else host
    try:
        with requests.Session() as session:
            session.trust_env = False
            url = f"{settings.scheme}://{place}:{port}{path}"
            return session.get(url, auth=ExoscaleV2Auth(key, secret), timeout=3, verify=False)
    except requests.RequestException:
        return None


def ensure_port_free(settings: Settings) -> None:
    """Raises Incorrect when another program listens where the API is to listen."""
    host, port = settings.listen_address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Incorrect(
                f"The API cannot listen on {settings.listen}: {error.strerror}."
                " Choose another address with PGHERD_LISTEN."
            ) from None


def wait_for_host(settings: Settings, key: str, secret: str) -> bool:
    """Wait until services can be created; False when that is not so after half a minute."""
    deadline = time.monotonic() + _PATIENCE
    while not (ready := offers_versions(settings, key, secret)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return ready


def wait_for_api(settings: Settings, supervisor: Supervisor) -> None:
    """Wait until the API answers. Raises HostFault with the API's last words."""
    until_ready(lambda: api_answers(settings), supervisor, "api", _PATIENCE)
