"""Every setting: its name, type, default and meaning; read from the environment and a TOML file.

`PGHERD_LISTEN` in the environment wins over `listen` in `PGHERD_HOME/pgherd.toml`, which wins over the
default. Unknown keys in the file and values of a wrong form are refused with the setting's name.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pgherd.errors import Incorrect


def _setting(default: Any, meaning: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"meaning": meaning, "secret": secret})


@dataclass(frozen=True)
class Settings:
    """The settings of one instance. Sizes and times carry their unit in `meaning`."""

    home: str = _setting("", "directory of all state; empty: /var/lib/pgherd as root, ~/.local/share/pgherd otherwise")
    listen: str = _setting("127.0.0.1:8450", "address and port of the API")
    zone: str = _setting("ch-gva-2", "name of the one zone that this instance serves")
    advertised_host: str = _setting("127.0.0.1", "name or address under which clients reach the services of this host")
    service_host: str = _setting(
        "", "host in a service's URI; empty: the advertised host; may hold {service} and {org}"
    )
    public_url: str = _setting("", "URL of the API that GET /zone gives, ending in /v2; empty: made from `listen`")
    service_ports: str = _setting(
        "21600-29999", "ports of services, FIRST-LAST below 32768; each takes a block of four"
    )
    port_rest_seconds: int = _setting(600, "seconds before the ports of a deleted service are used again")
    keep_deleted_days: int = _setting(
        0,
        "days for which the backups of a deleted service are kept, so that it can be brought back; 7 is a good choice",
    )
    database_url: str = _setting(
        "", "metadata PostgreSQL; empty: a private one under the home directory, unix socket only", secret=True
    )
    agent_database_url: str = _setting(
        "", "how this host's agent logs in to the metadata; empty: the private one, by peer", secret=True
    )
    host: str = _setting("local", "name of this host among the hosts of the zone")
    default_version: str = _setting("15", "PostgreSQL major version when a request names none")
    postgres_bindirs: str = _setting(
        "",
        "directories of PostgreSQL programs, MAJOR=DIR separated by commas; empty: /usr/lib/postgresql/*/bin,"
        " and what install/postgresql.sh installed",
    )
    pgbouncer: str = _setting(
        "", "PgBouncer 1.21 or newer; empty: what install/pgbouncer.sh installed, else /usr/sbin/pgbouncer"
    )
    backup_s3_endpoint: str = _setting(
        "",
        "S3-compatible server for new services' backups, HOST or HOST:PORT by TLS; empty: directories in the home",
    )
    backup_s3_bucket: str = _setting("", "its bucket, which exists")
    backup_s3_region: str = _setting("us-east-1", "its region")
    backup_s3_key: str = _setting("", "access key that may read, write and delete in the bucket", secret=True)
    backup_s3_secret: str = _setting("", "the access key's secret", secret=True)
    backup_s3_prefix: str = _setting(
        "", "what the names of this instance's objects begin with; below it a path a service"
    )
    backup_s3_ca_file: str = _setting("", "PEM file with the CA of its certificate; empty: the system's")
    backup_s3_path_style: bool = _setting(True, "name the bucket in the path, not in the host")
    archive_timeout_seconds: int = _setting(
        60,
        "seconds after which a WAL segment that was written to is archived though not full: what a lost node loses",
    )
    verify_days: int = _setting(
        7, "days between two proofs of a service's backups: the newest is restored and looked at; 0: only by hand"
    )
    pgbackrest: str = _setting("", "pgBackRest; empty: what install/pgbackrest.sh installed, else /usr/bin/pgbackrest")
    exporter: str = _setting(
        "", "postgres_exporter, which tells Prometheus of a service; empty: /usr/bin/prometheus-postgres-exporter"
    )
    memory_cap_percent: int = _setting(
        5, "most of the host's memory, in percent, that sizes one service's PostgreSQL, however large its plan"
    )
    services_per_host: int = _setting(500, "most services on one host")
    services_per_organization: int = _setting(200, "most services of one organization")
    host_overcommit_percent: int = _setting(3200, "most memory of all plans on a host, in percent of the host's memory")
    maintenance_deadline_days: int = _setting(
        60, "days until an update that waits is installed at the slot's time of any day, where the slot is `never` too"
    )
    host_disk_reserve_percent: int = _setting(
        5,
        "free space of a host's file system, in percent but 20 GiB at most, below which the services that grow fastest"
        " become read-only; 0: off",
    )
    organization_memory_gib: int = _setting(0, "most memory of all plans of one organization, in GiB; 0: no limit")
    warm_pool: int = _setting(4, "initialised directories that a host keeps ready for the default version")
    uid_range: str = _setting("200000-209999", "numeric ids of the services' OS users, FIRST-LAST (as root only)")
    worker_concurrency: int = _setting(8, "operations that a worker carries out at once")
    tls_certificate: str = _setting("", "PEM file with the API's certificate chain; with tls_key the API speaks HTTPS")
    tls_key: str = _setting("", "PEM file with the key of tls_certificate")
    insecure_http: bool = _setting(False, "allow plain HTTP on an address that is not a loopback one")

    @property
    def root(self) -> Path:
        """The home directory as a path."""
        if self.home:
            return Path(self.home)
        return Path("/var/lib/pgherd") if os.geteuid() == 0 else Path.home() / ".local/share/pgherd"

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port of `listen`; IPv6 addresses stand in brackets."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def scheme(self) -> str:
        """`https` when the API has a certificate."""
        return "https" if self.tls_certificate else "http"

    @property
    def api_url(self) -> str:
        """The API's URL, as `GET /zone` shows it."""
        return (self.public_url or f"{self.scheme}://{self.listen}/v2").rstrip("/")

    @property
    def port_range(self) -> tuple[int, int]:
        """First and last port of services."""
        return _range(self.service_ports, "service_ports", 1024, 32767)

    @property
    def uids(self) -> tuple[int, int]:
        """First and last numeric id of services' OS users."""
        return _range(self.uid_range, "uid_range", 1000, 2**31)

    @property
    def loopback(self) -> bool:
        """Whether services are advertised on a loopback address, so that local clients always pass."""
        if self.advertised_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.advertised_host).is_loopback
        except ValueError:
            return False

    @property
    def s3_ca(self) -> str:
        """The PEM text of `backup_s3_ca_file`. Raises Incorrect when it cannot be read."""
        if not self.backup_s3_ca_file:
            return ""
        try:
            return Path(self.backup_s3_ca_file).read_text()
        except (OSError, UnicodeDecodeError):
            raise Incorrect("Setting backup_s3_ca_file: no PEM file that this user can read.") from None

    def host_of(self, service: str, organization: str) -> str:
        """The host name in the URI of a service."""
        return (self.service_host or self.advertised_host).replace("{service}", service).replace("{org}", organization)


def _range(text: str, name: str, low: int, high: int) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found or not low <= int(found[1]) < int(found[2]) <= high:
        raise Incorrect(f"Setting {name} must be FIRST-LAST with {low} <= FIRST < LAST <= {high}, not {text!r}.")
    return int(found[1]), int(found[2])


def _convert(name: str, kind: type, value: Any, origin: str) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
            return str(value).lower() in ("1", "true", "yes", "on")
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            return int(value)
    elif isinstance(value, str):
        return value
    shown = "a value" if _secret(name) else repr(value)
    raise Incorrect(f"Setting {name} ({origin}) must be of type {kind.__name__}, not {shown}.")


def _secret(name: str) -> bool:
    return any(f.name == name and f.metadata["secret"] for f in dataclasses.fields(Settings))


def _kind(f: dataclasses.Field[Any]) -> type:
    return {"str": str, "int": int, "bool": bool}[str(f.type)]


def load(environ: dict[str, str] | None = None) -> Settings:
    """Read the settings. Raises Incorrect with the name of the first wrong one."""
    env = dict(os.environ) if environ is None else environ
    fields = {f.name: f for f in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    home = Settings(home=env.get("PGHERD_HOME", "")).root
    try:
        with open(home / "pgherd.toml", "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        table = {}
    except tomllib.TOMLDecodeError as error:
        raise Incorrect(f"pgherd.toml in the home directory is not valid TOML: {error}.") from None
    for key, value in table.items():
        name = key.replace("-", "_")
        if name == "home":
            raise Incorrect("pgherd.toml: it lies in the home, which only the variable PGHERD_HOME can name.")
        if name not in fields:
            raise Incorrect(f"pgherd.toml: unknown setting {key!r}; `pgherd settings` lists them.")
        values[name] = _convert(name, _kind(fields[name]), value, "pgherd.toml")
    for name, f in fields.items():
        variable = f"PGHERD_{name.upper()}"
        if variable in env:
            values[name] = _convert(name, _kind(f), env[variable], variable)
    settings = dataclasses.replace(Settings(), **values)
    return _checked(dataclasses.replace(settings, home=str(settings.root.absolute())))


def _checked(settings: Settings) -> Settings:
    host, _, port = settings.listen.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise Incorrect(f"Setting listen must be ADDRESS:PORT, not {settings.listen!r}.")
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise Incorrect("Settings tls_certificate and tls_key go together: set both or none.")
    for name in ("warm_pool", "verify_days", "port_rest_seconds", "organization_memory_gib", "keep_deleted_days"):
        if getattr(settings, name) < 0:
            raise Incorrect(f"Setting {name} must be 0 or more.")
    for name in (
        "services_per_host",
        "services_per_organization",
        "host_overcommit_percent",
        "worker_concurrency",
        "maintenance_deadline_days",
    ):
        if getattr(settings, name) < 1:
            raise Incorrect(f"Setting {name} must be 1 or more.")
    if not 1 <= settings.archive_timeout_seconds <= 60:
        raise Incorrect("Setting archive_timeout_seconds must be 1 to 60.")
    if settings.backup_s3_endpoint:
        if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?", settings.backup_s3_endpoint):
            raise Incorrect("Setting backup_s3_endpoint must be HOST or HOST:PORT.")
        for name in ("bucket", "region", "key", "secret"):
            if not getattr(settings, f"backup_s3_{name}"):
                raise Incorrect(f"Setting backup_s3_{name} must be given with backup_s3_endpoint.")
    if not 0 <= settings.host_disk_reserve_percent <= 50:
        raise Incorrect("Setting host_disk_reserve_percent must be 0 to 50.")
    if not 1 <= settings.memory_cap_percent <= 100:
        raise Incorrect("Setting memory_cap_percent must be 1 to 100.")
    if not re.fullmatch(r"[a-z]{2}-[a-z]{2,3}-[0-9]{1,3}", settings.zone):
        raise Incorrect(f"Setting zone must look like ch-gva-2, not {settings.zone!r}.")
    if settings.public_url and urlsplit(settings.public_url).scheme not in ("http", "https"):
        raise Incorrect("Setting public_url must be an http or https URL ending in /v2.")
    settings.port_range, settings.uids  # noqa: B018 - both raise on a wrong range
    return settings


def refuse_open_http(settings: Settings) -> None:
    """Refuse to serve plain HTTP on an address that others can reach. Raises Incorrect with the way out."""
    host = settings.listen_address[0]
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and settings.scheme == "http" and not settings.insecure_http:
        raise Incorrect(
            f"Refusing plain HTTP on {host}: set tls_certificate and tls_key, listen on 127.0.0.1,"
            " or pass --insecure-http (PGHERD_INSECURE_HTTP=1) if a proxy in front speaks TLS."
        )
