"""Builds the worker from the settings."""

from __future__ import annotations

import logging

from pgherd import failpoints
from pgherd.reconcilers.rounds import Rounds
from pgherd.settings import Settings
from pgherd.store.db import Db, database_url
from pgherd.store.vault import Vault, key_file
from pgherd.workflows.app import App
from pgherd.workflows.wakeups import Wakeups
from pgherd.workflows.worker import run_worker as work


def run_worker(settings: Settings) -> None:
    """Carry operations out until SIGTERM."""
    failpoints.name_process("worker")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    url = database_url(settings)
    app = App(settings, Db(url, 4), Vault(key_file(settings)), Wakeups(url))
    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    work(app, url, Rounds(app))
