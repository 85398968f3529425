"""`pgherd`: the daemons and the operators' commands by name; everything else is the CLI."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator

from pgherd.errors import PgherdError
from pgherd.settings import Settings

_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Loading modules makes much that stays; to look for garbage meanwhile takes a sixth of a start and finds none."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _api(settings: Settings, argv: list[str]) -> int:
    with _loading():
        from pgherd.wiring.api import run_api

    run_api(settings)
    return 0


def _worker(settings: Settings, argv: list[str]) -> int:
    with _loading():
        from pgherd.wiring.worker import run_worker

    run_worker(settings)
    return 0


def _agent(settings: Settings, argv: list[str]) -> int:
    with _loading():
        from pgherd.agent.agent import run

    run(settings)
    return 0


def _migrate(settings: Settings, argv: list[str]) -> int:
    from pgherd.store.db import database_url
    from pgherd.store.migrate import migrate

    for name in migrate(database_url(settings)):
        print(name)
    return 0


def _bootstrap(settings: Settings, argv: list[str]) -> int:
    from pgherd.instance.control import bootstrap

    return bootstrap(settings, argv)


def _rotate(settings: Settings, argv: list[str]) -> int:
    from pgherd.instance.control import rotate_here

    return rotate_here(settings)


def _exported(settings: Settings, argv: list[str]) -> int:
    from pgherd.instance.keys import exported_here

    return exported_here(settings, argv[0])


def _import_keys(settings: Settings, argv: list[str]) -> int:
    from pgherd.instance.keys import import_here

    return import_here(settings, sys.stdin.read())


_DAEMONS: dict[str, Callable[[Settings, list[str]], int]] = {"api": _api, "worker": _worker, "agent": _agent}
_INTERNAL = {
    "migrate": _migrate,
    "bootstrap": _bootstrap,
    "rotate": _rotate,
    "exported": _exported,
    "import-keys": _import_keys,
}


def _end_with_parent() -> None:
    """A killed s6-supervise must not leave us behind without supervision: its successor waits for our end.

    When it was killed while we waited for the lock of the service directory, nobody told us.
    """
    import ctypes
    import signal

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if "PGHERD_SUPERVISED" in os.environ:
        with contextlib.suppress(OSError), open(f"/proc/{os.getppid()}/comm") as file:
            if file.read().strip() != "s6-supervise":
                sys.exit(0)


def _run_internal(name: str, argv: list[str]) -> int:
    from pgherd.instance.effective import running

    try:
        if name in _DAEMONS:
            _end_with_parent()
            from pgherd import failpoints

            failpoints.name_process(name)
        run = _DAEMONS.get(name) or _INTERNAL[name]
        return run(running(), argv)
    except PgherdError as error:
        print(f"pgherd {name}: {error}", file=sys.stderr)
        return 1


def main() -> int:
    """Dispatch by the first word; the daemons import nothing of the CLI."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    call = name == "api" and "PGHERD_SUPERVISED" not in os.environ  # `pgherd api OPERATION-ID` of the CLI
    if (name in _DAEMONS or name in _INTERNAL) and not call:
        return _run_internal(name, sys.argv[2:])
    from pgherd.instance.commands import COMMANDS, run

    if name in COMMANDS:
        return run(name, sys.argv[2:])
    with _loading():
        from pgherd.cli.app import main as cli

    return cli()


if __name__ == "__main__":
    sys.exit(main())
