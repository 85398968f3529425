"""Run a program under a service's own OS user: what it reads, writes and answers is the service's affair, never root's.

The program gets no privilege to gain, a minimal environment, a time limit and a limit on what it may answer.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pgherd.errors import HostFault

_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


@dataclass(frozen=True)
class Account:
    """An OS user with its own group."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Answer:
    """How a program ended and what it said."""

    code: int
    out: bytes
    err: str


def prefix(uid: int, gid: int, groups: Sequence[int] = ()) -> list[str]:
    """The words before a command that is to run under `uid` and can never gain privileges; `groups`: gids beside."""
    beside = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", beside, "--inh-caps=-all", "--no-new-privs"]


def run(
    account: Account | None,
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout: float = 30,
    limit: int = 1 << 20,
    env: dict[str, str] | None = None,
    memory: int | None = None,
    descriptors: Sequence[int] = (),
    groups: Sequence[int] = (),
) -> Answer:
    """Run `argv` as `account` (None: as the caller) for at most `timeout` seconds and `limit` bytes of answer.

    `memory` bounds its address space in bytes; it inherits `descriptors`, and may read what is open to `groups` beside
    its own. Raises HostFault when it does not end in time or answers more;
    its exit code is the caller's to judge.
    """
    bounds = [] if memory is None else ["prlimit", f"--as={memory}"]
    identity = prefix(account.uid, account.gid, groups)[1:] if account else []
    # Whoever kills us ends the program too: nobody would wait for it, and the next run begins anew.
    command = [*bounds, "setpriv", "--pdeathsig", "KILL", *identity, *argv]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=_ENVIRONMENT | (env or {}), cwd="/", start_new_session=True, umask=0o077,
        pass_fds=descriptors,
    )  # fmt: skip
    try:
        return _converse(process, argv[0], stdin, time.monotonic() + timeout, limit)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _converse(process: subprocess.Popen[bytes], name: str, stdin: bytes, deadline: float, limit: int) -> Answer:
    assert process.stdin and process.stdout and process.stderr
    heard: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    out, err = heard.values()
    program = os.path.basename(name)
    with selectors.DefaultSelector() as selector:
        for descriptor in heard:
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        if stdin:
            selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        left = memoryview(stdin)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                raise HostFault(f"{program} did not answer in time.")
            for key, _ in ready:
                if key.fd in heard:
                    chunk = os.read(key.fd, 65536)
                    heard[key.fd] += chunk
                    if not chunk:
                        selector.unregister(key.fd)
                    if len(heard[key.fd]) > limit:
                        raise HostFault(f"{program} answered more than {limit} bytes.")
                    continue
                left = left[_write(key.fd, left) :]
                if not left:
                    selector.unregister(key.fd)
                    process.stdin.close()
    try:
        code = process.wait(max(0.01, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise HostFault(f"{program} did not end in time.") from None
    return Answer(code, bytes(out), err.decode(errors="replace"))


def _write(descriptor: int, data: memoryview) -> int:
    try:
        return os.write(descriptor, data[:65536])
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)
