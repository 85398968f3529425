"""Where things lie under the home directory.

As root, what services can write is only `nodes/*/data`, `nodes/*/run` and `backups/*/repo`.
"""

from __future__ import annotations

from pathlib import Path


class Home:
    """Paths of one instance; pure, nothing is created here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.releases = root / "releases"  # one virtual environment per version, root-owned
        self.current = root / "current"  # link to the release that runs
        self.scan = root / "s6"  # s6-svscan's directory; one service directory per process
        self.logs = root / "log"  # one directory of s6-log per process
        self.metadata = root / "metadata"  # the private PostgreSQL: data/, run/ (socket)
        self.secrets = root / "secrets"  # key files; readable by the control plane's user alone
        self.agent = root / "agent"  # the agent's own state, root-only
        self.warm = root / "warm"  # initialised directories that wait for a node
        self.nodes = root / "nodes"  # one directory per node
        self.backups = root / "backups"  # one directory per service: root's, in it the repository, the service's
        self.credentials = root / "credentials.toml"  # the operator's key, for `pgherd env`
        self.config_file = root / "pgherd.toml"

    @property
    def metadata_socket(self) -> Path:
        """Directory of the private PostgreSQL's socket."""
        return self.metadata / "run"
