"""Builds the API from the settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import uvicorn

from pgherd import failpoints
from pgherd.api import unavailable
from pgherd.api.access import Access
from pgherd.api.app import Application
from pgherd.api.audit import Audit
from pgherd.api.backups import Backups
from pgherd.api.catalog import Catalog
from pgherd.api.http import server_options
from pgherd.api.operations import Ends, Operations
from pgherd.api.platform import Platform
from pgherd.api.pools import Pools
from pgherd.api.restores import Restores
from pgherd.api.services import Services
from pgherd.api.telemetry import Telemetry
from pgherd.api.unknown_nodes import UnknownNodes
from pgherd.contract.document import load_hosted, load_platform
from pgherd.settings import Settings, refuse_open_http
from pgherd.store.db import AsyncDb, Db, database_url
from pgherd.store.keys import KeyCache
from pgherd.store.platform import Organizations, PlatformStore
from pgherd.store.vault import Vault, key_file
from pgherd.workflows.app import App


def build_api(settings: Settings) -> Application:
    """The API as an ASGI application; its connections open when the server starts it."""
    url = database_url(settings)
    vault = Vault(key_file(settings))
    reads = AsyncDb(url, 4)
    keys = KeyCache(reads, vault)
    writes = Db(url, 4, wait=False)
    app = App(settings, writes, vault)
    ends = Ends(url, keys)
    operations = Operations(app, reads, ends)
    services = Services(settings, reads, operations)
    audit = Audit(reads)
    platform = Platform(settings, PlatformStore(Organizations(writes, vault), keys.forget))

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[None]:
        await reads.open()
        writes.open()
        listening = asyncio.create_task(ends.listen())
        try:
            yield
        finally:
            listening.cancel()
            await reads.close()
            writes.close()

    async def versions() -> list[str]:
        found = await reads.row("versions")
        return sorted({major for offered in (found or {})["versions"] for major in offered})

    hosted = load_hosted()
    catalog = Catalog(hosted, settings.zone, settings.api_url, versions, settings.default_version)
    handlers = {
        "create-dbaas-service-pg": services.create,
        "update-dbaas-service-pg": services.update,
        "delete-dbaas-service-pg": services.delete,
        "delete-dbaas-service": services.delete,
        "start-dbaas-pg-maintenance": services.maintain,
        "stop-service": services.stop,
        "start-service": services.start,
        "get-dbaas-service-pg": services.get,
        "list-dbaas-services": services.list,
        "get-dbaas-ca-certificate": services.ca_certificate,
        "get-operation": operations.get,
        **Access(reads, vault, operations).handlers(),
        **Pools(operations).handlers(),
        **Backups(reads, operations).handlers(),
        **Telemetry(settings, reads, vault, ends).handlers(),
        **Restores(reads, operations).handlers(),
        **audit.handlers(),
        **catalog.handlers(),
        **platform.handlers(),
        **UnknownNodes(app, reads, ends).handlers(),
    }
    return Application(
        [hosted, load_platform()],
        handlers,
        keys,
        refusals=unavailable.refusals(hosted),
        lifespan=running(),
        audit=audit,
        more_faults={"create-dbaas-service-pg": services.faults, "update-dbaas-service-pg": services.faults},
    )


def run_api(settings: Settings) -> None:
    """Serve until SIGTERM."""
    failpoints.name_process("api")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("pgherd.api").info("serves %s", settings.api_url)
    refuse_open_http(settings)
    host, port = settings.listen_address
    config = uvicorn.Config(
        build_api(settings),
        host=host,
        port=port,
        lifespan="on",
        timeout_graceful_shutdown=3,
        ssl_certfile=settings.tls_certificate or None,
        ssl_keyfile=settings.tls_key or None,
        **server_options(),
    )
    uvicorn.Server(config).run()
