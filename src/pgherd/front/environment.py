"""The variables with which a client's calls go through the front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pgherd.front.proxy import USER

_LOCAL = ("localhost", "127.0.0.1", "::1")


def variables(
    bundle: Path, running: Mapping[str, str], key: tuple[str, str], environ: Mapping[str, str]
) -> dict[str, str]:
    """Names and values. `running` is what `Place.running` gives: listen, zone, token and the instance's url.

    The endpoint is the name that Terraform's provider calls anyway: newer ones take the scheme from it and the host
    from the zone, and would call the hosted service over plain HTTP if it were the instance's own.
    """
    proxy = f"http://{USER}:{running['token']}@{running['listen']}"
    bypassed = [name for name in (environ.get("NO_PROXY") or environ.get("no_proxy") or "").split(",") if name]
    direct = ",".join(dict.fromkeys([*bypassed, *_LOCAL, urlsplit(running["url"]).hostname or ""]))
    return {
        "EXOSCALE_API_ENDPOINT": f"https://api-{running['zone']}.exoscale.com/v2",
        "EXOSCALE_API_KEY": key[0],
        "EXOSCALE_API_SECRET": key[1],
        "EXOSCALE_ZONE": running["zone"],
        # Programs differ in which spelling they read first.
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": direct,
        "no_proxy": direct,
        "SSL_CERT_FILE": str(bundle),
        "REQUESTS_CA_BUNDLE": str(bundle),
        "CURL_CA_BUNDLE": str(bundle),
    }
