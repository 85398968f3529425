"""The operator's key of this instance: kept in HOME/credentials.toml, printed by `pgherd env`."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pgherd.errors import Incorrect
from pgherd.instance.layout import write_file
from pgherd.settings import Settings

_WILDCARDS = ("0.0.0.0", "::", "")


def endpoint(settings: Settings) -> str:
    """The URL under which a client on this machine finds the API."""
    host, port = settings.listen_address
    if settings.public_url or host not in _WILDCARDS:
        return settings.api_url
    return f"{settings.scheme}://{settings.advertised_host}:{port}/v2"


def read(path: Path) -> dict[str, str]:
    """endpoint, key, secret and zone. Raises Incorrect with the way out."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
        return {name: str(table[name]) for name in ("endpoint", "key", "secret", "zone")}
    except FileNotFoundError:
        raise Incorrect(f"There is no {path}: this instance was not started yet. Run `make up`.") from None
    except PermissionError:
        raise Incorrect(
            f"You may not read {path}, which holds the operator's key. Run as the user that ran `make up`,"
            " or ask the operator for a key of your own (`pgherd key create`)."
        ) from None
    except (tomllib.TOMLDecodeError, KeyError):
        raise Incorrect(f"{path} is damaged. Remove it and run `make up`, which makes a new operator key.") from None


def write(path: Path, settings: Settings, pair: tuple[str, str] | None) -> None:
    """Store a new key; without one only bring endpoint and zone up to date."""
    key, secret = pair or (read(path)["key"], read(path)["secret"])
    values = {"endpoint": endpoint(settings), "zone": settings.zone, "key": key, "secret": secret}
    text = "# The operator's key of this instance. Keep it to yourself.\n"
    text += "".join(f"{name} = {_quoted(value)}\n" for name, value in values.items())
    write_file(path, text, 0o600)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def export_lines(path: Path) -> str:
    """Shell lines for `eval "$(pgherd env)"`."""
    found = read(path)
    return _exports(
        {
            "EXOSCALE_API_ENDPOINT": found["endpoint"],
            "EXOSCALE_API_KEY": found["key"],
            "EXOSCALE_API_SECRET": found["secret"],
            "EXOSCALE_ZONE": found["zone"],
        }
    )


def front_lines(path: Path, environ: Mapping[str, str]) -> str:
    """Shell lines for `eval "$(pgherd env --terraform)"`: the caller's own key if one is set, else the operator's."""
    from pgherd.front.environment import variables
    from pgherd.front.place import Place

    place = Place(environ)
    running = place.running()
    if environ.get("EXOSCALE_API_ENDPOINT"):
        key = environ.get("EXOSCALE_API_KEY", ""), environ.get("EXOSCALE_API_SECRET", "")
        if not all(key):
            raise Incorrect("EXOSCALE_API_ENDPOINT is set, but not EXOSCALE_API_KEY and EXOSCALE_API_SECRET.")
    else:
        found = read(path)
        key = found["key"], found["secret"]
        if found["endpoint"] != running["url"]:
            raise Incorrect(
                f"The front that runs leads to {running['url']}, not to this machine's instance: set"
                " EXOSCALE_API_ENDPOINT, EXOSCALE_API_KEY and EXOSCALE_API_SECRET here as where it was started."
            )
    return _exports(variables(place.bundle, running, key, environ))


def _exports(values: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())
