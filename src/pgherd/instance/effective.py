"""Which settings are in force, and where each comes from.

`pgherd up` takes the environment of that moment, then `pgherd.toml`, then the defaults. What came from the
environment it writes to HOME/settings.env, from which the supervised processes, `pgherd restart`, `down`,
`env`, `doctor` and a boot unit read it. The next `up` without these variables forgets them; what is to stay
belongs into `pgherd.toml`.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from pgherd.errors import Incorrect
from pgherd.home import Home
from pgherd.instance.accounts import Accounts, ids
from pgherd.instance.layout import write_file
from pgherd.settings import Settings, load

_NAMES = tuple(f"PGHERD_{f.name.upper()}" for f in dataclasses.fields(Settings) if f.name != "home")
_HEAD = "# Settings from the environment of the last `pgherd up`, for its processes. To keep one: pgherd.toml.\n"


def home_of(environ: Mapping[str, str]) -> Home:
    """The home directory that the environment names."""
    return Home(Settings(home=environ.get("PGHERD_HOME", "")).root.absolute())


def remembered(home: Home) -> dict[str, str]:
    """The variables that the last `up` was given. Raises Incorrect when the file may not be read."""
    try:
        text = (home.root / "settings.env").read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        raise Incorrect(f"You may not read {home.root}/settings.env; run this as the user of `make up`.") from None
    words = (line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, value in words}


def running(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of the instance as it was started; variables of the environment win over the remembered ones."""
    env = dict(os.environ) if environ is None else dict(environ)
    try:
        return load({**remembered(home_of(env)), **env})
    except PermissionError as error:
        raise Incorrect(f"You may not read {error.filename}; run this as the user that ran `make up`.") from None


def given(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings in the environment, without the home directory."""
    return {name: environ[name] for name in _NAMES if name in environ}


def unknown(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like settings and are none."""
    own = {"PGHERD_HOME", "PGHERD_FAILPOINTS", "PGHERD_SUPERVISED"}
    return sorted(name for name in environ if name.startswith("PGHERD_") and name not in own and name not in _NAMES)


def remember(home: Home, environ: Mapping[str, str], who: Accounts) -> None:
    """Write what the supervised processes need; readable by root and the control plane's user alone."""
    text = _HEAD + "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(given(environ).items()))
    if "\n" in "".join(given(environ).values()):
        raise Incorrect("A setting in the environment holds a line break.")
    owner = (os.geteuid(), ids(who.control)[1])
    write_file(home.root / "settings.env", text, 0o640 if who.control else 0o600, owner)
    _let_control_read(home.config_file, who)


def _let_control_read(path: Path, who: Accounts) -> None:
    """`pgherd.toml` is the administrator's; the control plane must read it, and others not when it holds a secret."""
    if not who.control or not path.exists():
        return
    found, group = path.stat(), ids(who.control)[1]
    mode = stat.S_IMODE(found.st_mode)
    wanted = (mode | 0o040) & ~0o027
    if "database_url" not in path.read_text() and mode & stat.S_IROTH:
        return
    if found.st_gid != group:
        os.chown(path, -1, group)
    if mode != wanted:
        path.chmod(wanted)


def origins(environ: Mapping[str, str]) -> dict[str, str]:
    """Setting name -> where its value comes from: `environment`, `last up`, `pgherd.toml` or `default`."""
    home = home_of(environ)
    kept = remembered(home)
    defaults = load({"PGHERD_HOME": str(home.root)} if home.config_file.exists() else {})
    result = {}
    for field in dataclasses.fields(Settings):
        variable = f"PGHERD_{field.name.upper()}"
        if variable in environ:
            result[field.name] = "environment"
        elif variable in kept:
            result[field.name] = "last up"
        elif field.name != "home" and getattr(defaults, field.name) != field.default:
            result[field.name] = "pgherd.toml"
        else:
            result[field.name] = "default"
    return result
