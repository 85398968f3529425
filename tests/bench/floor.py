"""The floor: what the same machine needs without pgherd. A warm directory is started by hand and asked once."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from tests.plugins.instance import free_port

BIN = Path("/usr/lib/postgresql/15/bin")


class Floor:
    """Copies of one initialised directory with TLS and a password role, owned by an unprivileged user."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pgherd-floor-"))
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            os.chown(self.root, account.pw_uid, account.pw_gid)
        self._run(BIN / "initdb", "-D", self.root / "template", "-U", "postgres", "--data-checksums", "-A", "trust")
        subprocess.run(
            ["openssl", "req", "-new", "-x509", "-nodes", "-subj", "/CN=floor", "-newkey", "ec", "-pkeyopt",
             "ec_paramgen_curve:P-256", "-keyout", "server.key", "-out", "server.crt"],
            cwd=self.root / "template", check=True, capture_output=True, **self._as,
        )  # fmt: skip
        with open(self.root / "template/postgresql.conf", "a") as file:
            file.write("\nssl = on\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n")

    def _run(self, *argv: str | Path) -> None:
        subprocess.run(list(map(str, argv)), check=True, capture_output=True, cwd=self.root, **self._as)

    def directory(self) -> Path:
        """A copy that is ready to be started; made outside of the measured time, like a warm slot."""
        made = Path(tempfile.mkdtemp(dir=self.root))
        shutil.rmtree(made)
        self._run("cp", "-a", self.root / "template", made)
        return made

    def first_query(self, directory: Path) -> tuple[float, subprocess.Popen[bytes]]:
        """Seconds from the start of the postmaster to the first answer over TLS, and the process."""
        port, start = free_port(), time.perf_counter()
        process = subprocess.Popen(
            [BIN / "postgres", "-D", directory, "-p", str(port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as,
        )  # fmt: skip
        while True:
            try:
                with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=require") as c:
                    c.execute("select 1")
                return time.perf_counter() - start, process
            except psycopg.OperationalError:
                if time.perf_counter() - start > 30:
                    raise
                time.sleep(0.002)

    def clear(self) -> None:
        """Remove the directories."""
        shutil.rmtree(self.root, ignore_errors=True)
