"""What runs as the control plane's user: preparing the metadata, rotating the key of secrets."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

from pgherd.errors import Incorrect
from pgherd.home import Home
from pgherd.instance import effective
from pgherd.instance.accounts import accounts, run_as
from pgherd.instance.processes import supervisor_of
from pgherd.settings import Settings


def bootstrap(settings: Settings, argv: list[str]) -> int:
    """Key file, schema and first rows. Prints the operator's key and secret as JSON when made now, else `null`."""
    from pgherd.store import bootstrap, migrate, vault
    from pgherd.store.db import database_url

    parser = argparse.ArgumentParser(prog="pgherd bootstrap")
    parser.add_argument("--new-key", action="store_true", help="make an operator key even if there is one")
    parser.add_argument("--cold", action="store_true", help="this host's nodes were not running until now")
    chosen = parser.parse_args(argv)
    vault.ensure_key_file(vault.key_file(settings))
    url = database_url(settings)
    migrate.migrate(url)
    migrate.grant_host(url, bootstrap.host_login(settings.host))
    bootstrap.ensure_recovery_key(settings)
    pair = bootstrap.ensure_operator(settings)
    if pair is None and chosen.new_key:
        pair = _another_key(settings)
    if chosen.cold:
        bootstrap.forget_observations(settings)
    json.dump(pair, sys.stdout)
    return 0


def _another_key(settings: Settings) -> tuple[str, str]:
    """The file with the operator's key was lost, or its writer was killed."""
    from pgherd.store.db import Db, database_url
    from pgherd.store.platform import Organizations
    from pgherd.store.vault import Vault, key_file

    db = Db(database_url(settings), 1)
    try:
        return Organizations(db, Vault(key_file(settings))).create_operator_key()
    finally:
        db.close()


def rotate_here(settings: Settings) -> int:
    """`pgherd secrets rotate`, already under the right user."""
    from pgherd.store.vault import rotate

    print(f"Secrets are now under key {rotate(settings)}.")
    return 0


def rotate(environ: Mapping[str, str]) -> int:
    """Rotate as the user that may read the keys."""
    settings = effective.running(environ)
    home = Home(settings.root)
    if not settings.database_url and not (home.scan.exists() and supervisor_of(home, accounts()).scanner_alive()):
        raise Incorrect("This instance is not running; start it with `make up`.")
    done = run_as(
        accounts().control,
        [str(home.current / "bin/pgherd"), "rotate"],
        env={"PGHERD_HOME": str(home.root), "PYTHONSAFEPATH": "1"},
    )
    print(done.stdout, end="")
    return 0
