"""Where the API is and with which key: from the environment, else from the instance's own file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pgherd.cli.outcome import CliError, Exit

VARIABLES = ("EXOSCALE_API_ENDPOINT", "EXOSCALE_API_KEY", "EXOSCALE_API_SECRET")
WAY_OUT = f"Start an instance with `make up`, or set {', '.join(VARIABLES)} to use one elsewhere."
_OF_ROOT = "Root's instance is on this machine: use sudo, or have a key made for you: sudo pgherd key create NAME"


@dataclass(frozen=True)
class Credentials:
    """One API and one key of it. `origin` says where they came from."""

    endpoint: str
    key: str
    secret: str = field(repr=False)
    origin: str = ""

    @property
    def url(self) -> str:
        """The contract's URL, ending in /v2."""
        base = self.endpoint.rstrip("/")
        return base if re.search(r"/v2$", base) else f"{base}/v2"

    @property
    def own_url(self) -> str:
        """The URL of pgherd's own calls."""
        return self.url.removesuffix("/v2") + "/pgherd/v1"

    @property
    def host(self) -> str:
        """Host name or address of the API."""
        return urlsplit(self.endpoint).hostname or ""


def from_environment(environ: Mapping[str, str]) -> Credentials | None:
    """The credentials in the variables, or None without an endpoint: a bare key may belong to the real cloud."""
    if not environ.get(VARIABLES[0]):
        return None
    missing = [name for name in VARIABLES if not environ.get(name)]
    if missing:
        raise CliError(
            Exit.USAGE,
            f"{VARIABLES[0]} is set but not {' and '.join(missing)}.",
            'Set all of them: eval "$(pgherd env)"',
        )
    endpoint, key, secret = (environ[name] for name in VARIABLES)
    return _checked(Credentials(endpoint, key, secret, origin="the environment"))


def from_file(path: Path) -> Credentials | None:
    """The operator's credentials of the instance on this machine, or None where there is none."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
        return _checked(Credentials(table["endpoint"], table["key"], table["secret"], origin=str(path)))
    except FileNotFoundError:
        return None
    except PermissionError:
        raise CliError(
            Exit.USAGE,
            f"You may not read {path}: it holds the operator's key.",
            "Run as the user that owns it, or set " + ", ".join(VARIABLES) + " to a key of your own.",
        ) from None
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise CliError(Exit.USAGE, f"{path} is damaged: {error}.", "Write it again with `make up`.") from None


def find(environ: Mapping[str, str] | None = None) -> Credentials:
    """The credentials to use. Raises CliError with the ways to get some."""
    from pgherd.home import Home
    from pgherd.settings import Settings

    env = os.environ if environ is None else environ
    found = from_environment(env)
    if found is None:
        path = Home(Settings(home=env.get("PGHERD_HOME", "")).root).credentials
        found = from_file(path)
    if found is None:
        hint = _OF_ROOT if roots_instance(env) else WAY_OUT
        raise CliError(Exit.USAGE, f"No credentials: {VARIABLES[0]} is not set and there is no {path}.", hint)
    return found


def roots_instance(environ: Mapping[str, str]) -> bool:
    """Whether the caller is not root, names no instance, and root has one at the usual place."""
    return os.geteuid() != 0 and not environ.get("PGHERD_HOME") and os.path.exists("/var/lib/pgherd/current")


def _checked(credentials: Credentials) -> Credentials:
    if urlsplit(credentials.endpoint).scheme not in ("http", "https") or not credentials.host:
        raise CliError(
            Exit.USAGE,
            f"The endpoint {credentials.endpoint!r} ({credentials.origin}) is no http or https URL.",
            "It looks like http://127.0.0.1:8450/v2",
        )
    return credentials
