"""A node's configuration: its files, rendered from the spec, installed when PostgreSQL takes them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from pgherd import sealing
from pgherd.agent import held, warm
from pgherd.agent.serving import Refused
from pgherd.drivers import config_files, extensions, hba, pgbouncer, postgres, postgres_settings
from pgherd.drivers.postgres import Cluster
from pgherd.spec import NodeSpec


@dataclass(frozen=True)
class Configuration:
    """One run for one node. `os_user`: as whom all runs without root; `private_key`: opens what the spec seals."""

    spec: NodeSpec
    cluster: Cluster
    os_user: str
    private_key: bytes

    def install(self, archive_command: str) -> str:
        """Install what has changed; returns the marker by which a server tells with what it runs.

        Raises Refused when PostgreSQL would not start with it; nothing is changed then.
        """
        files, marker = self._render(archive_command)
        config, group = self.cluster.config, self.cluster.account
        conf = config / "postgresql.conf"
        if conf.exists() and conf.read_text() != files["postgresql.conf"] and held.is_there(self.cluster):
            config_files.install(config, "candidate.conf", files["postgresql.conf"], group)
            if refusal := postgres.refusal_of(self.cluster, config / "candidate.conf"):
                raise Refused(f"PostgreSQL refuses the settings: {_first_complaint(refusal)}")
        for name, text in files.items():
            config_files.install(config, name, text, group)
        return marker

    def _render(self, archive_command: str) -> tuple[dict[str, str], str]:
        spec, cluster, account = self.spec, self.cluster, self.cluster.account
        slot, pooled = warm.read_slot(cluster.directory), pgbouncer.is_wanted(spec)
        conf = postgres_settings.render(
            spec, run=cluster.run, config=cluster.config,
            libraries=cluster.program.libraries, session_libraries=cluster.program.session_libraries,
            extensions=extensions.allow_list(
                extensions.installed(spec.version, cluster.program.control_files),
                frozenset() if spec.timescale else extensions.PRELOADED,
            ),
            locale=slot.locale if slot else postgres.locale(), archive_command=archive_command,
            archive_timeout=spec.repository.archive_timeout if spec.repository else 0,
        )  # fmt: skip
        user, major = account.name if account else self.os_user, int(spec.version)
        files = {
            "pg_hba.conf": hba.render_hba(spec.ip_filter, spec.loopback, pooled=pooled, major=major),
            "pg_ident.conf": hba.render_ident(user, pooled=pooled, major=major),
            "server.crt": spec.tls.certificate,
            "server.key": sealing.unseal(self.private_key, spec.tls.key),
        }
        marker = hashlib.sha256("\0".join([conf, *files.values()]).encode()).hexdigest()
        # The marker's file comes last: when it is there, the others are too.
        return files | {"postgresql.conf": f"{conf}{postgres_settings.MARKER} = '{marker}'\n"}, marker


def _first_complaint(said: str) -> str:
    for line in said.splitlines():
        if found := re.search(r"(?:LOG|FATAL|ERROR):\s+(.*)", line):
            return found[1]
    return said.splitlines()[0]
