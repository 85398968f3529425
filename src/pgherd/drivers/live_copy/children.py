"""The two children of `live_copy`, in one text: run by a bare Python with nothing but the standard library.

Not imported for what it does: its text is the program (`source`). It runs as whoever owns the files; the part that it
plays, its directory and its socket are in the environment. A message is a packet: a name, and with it a descriptor
for a file, none for a directory or for the end of a part.
"""

from __future__ import annotations

import array
import concurrent.futures
import errno
import fcntl
import os
import re
import socket
import stat
import threading

FICLONE = 0x40049409
#: Emptied, as by pg_basebackup: made anew at every start.
EMPTIED = {
    "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_replslot", "pg_wal",
}  # fmt: skip
#: Of one server's life, or of another backup.
LEFT_OUT = {
    "postmaster.pid", "postmaster.opts", "backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old",
    "backup_manifest", "postgresql.auto.conf.tmp", "current_logfiles", "current_logfiles.tmp", "recovery.signal",
    "standby.signal",
}  # fmt: skip
TEMPORARY = re.compile(r"pgsql_tmp|pg_internal\.init|t\d+_\d+(?:_(?:fsm|vm))?(?:\.\d+)?$")
LAST = "global/pg_control"
END, WAL_END = "./data", "./wal"
MOST_NAME = 512
MOST_OPEN = 64
SEGMENT = re.compile("[0-9A-F]{24}")


def source() -> str:
    """This module's own text."""
    with open(__file__) as file:
        return file.read()


def tell(channel: socket.socket, name: str, descriptor: int | None = None) -> None:
    """Send one message."""
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor is not None else []
    channel.sendmsg([name.encode()], passed)


def hand_over(channel: socket.socket, root: str, name: str) -> None:
    """Send a file; one that has vanished meanwhile is none that recovery would miss."""
    try:
        descriptor = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        tell(channel, name, descriptor)
    finally:
        os.close(descriptor)


def send_data(channel: socket.socket, root: str) -> None:
    """Every directory and file of the cluster, pg_control last."""
    if os.listdir(os.path.join(root, "pg_tblspc")):
        raise SystemExit("the cluster has tablespaces")
    pending = [""]
    while pending:
        place = pending.pop()
        with os.scandir(os.path.join(root, place)) as entries:
            for entry in entries:
                name = os.path.join(place, entry.name)
                if TEMPORARY.match(entry.name) or name in LEFT_OUT or name == LAST:
                    continue
                if entry.is_dir(follow_symlinks=False) or name == "pg_wal":
                    tell(channel, name)
                    if name not in EMPTIED:
                        pending.append(name)
                elif entry.is_file(follow_symlinks=False):
                    hand_over(channel, root, name)
    hand_over(channel, root, LAST)
    await_word(channel, END)


def await_word(channel: socket.socket, part: str) -> None:
    """End a part: what was handed over is read only now and then, and must be read before the backup goes on."""
    tell(channel, part)
    if channel.recv(MOST_NAME) != part.encode():
        raise SystemExit("the other side has ended")


def send_wal(channel: socket.socket, root: str, start: str, stop: str, label: bytes) -> None:
    """The segments from `start` to `stop`, the histories of timelines, and the label."""
    for name in sorted(os.listdir(os.path.join(root, "pg_wal"))):
        if (SEGMENT.fullmatch(name) and start <= name <= stop) or re.fullmatch(r"[0-9A-F]{8}\.history", name):
            hand_over(channel, root, "pg_wal/" + name)
    with open(os.memfd_create("label"), "w+b") as file:
        file.write(label)
        file.flush()
        tell(channel, "backup_label", file.fileno())
    await_word(channel, f"{WAL_END} {start} {stop}")


def acceptable(name: str) -> bool:
    """Whether a name from the other side stays below the directory."""
    return all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", part) for part in name.split("/")) and len(name) < MOST_NAME


def take(root: str, name: str, given: int) -> None:
    """Make a file from what was handed over. A clone shares the blocks; a copy stays in the kernel."""
    try:
        size = os.fstat(given).st_size
        if not stat.S_ISREG(os.fstat(given).st_mode):
            raise SystemExit(f"{name} is no file")
        made = os.open(os.path.join(root, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.ioctl(made, FICLONE, given)
            except OSError:
                fill(made, given, size)
        finally:
            os.close(made)
    finally:
        os.close(given)


def fill(made: int, given: int, size: int) -> None:
    """Copy `size` bytes, or less when the file has become shorter."""
    left = size
    os.lseek(given, 0, os.SEEK_SET)
    while left > 0:
        try:
            count = os.copy_file_range(given, made, left)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            count = os.sendfile(made, given, None, left)
        if count == 0:
            break
        left -= count


def receive(channel: socket.socket, root: str) -> None:
    """Make what is handed over, until both parts have ended."""
    ended: list[str] = []
    room = threading.BoundedSemaphore(MOST_OPEN)
    making: list[concurrent.futures.Future[None]] = []
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while len(ended) < 2:
            message, passed, flags, _ = channel.recvmsg(MOST_NAME, socket.CMSG_SPACE(4))
            name = message.decode()
            given = [n for _, _, data in passed for n in array.array("i", data[: len(data) // 4 * 4])]
            if name.startswith("./") and not given:
                for one in making:
                    one.result()
                making.clear()
                ended.append(name)
                channel.send(message)
                continue
            if not acceptable(name) or flags & socket.MSG_CTRUNC:
                raise SystemExit(f"unacceptable or broken message {name!r}")
            if given:
                room.acquire()
                making.append(pool.submit(take, root, name, given[0]))
                making[-1].add_done_callback(lambda _: room.release())
            else:
                os.mkdir(os.path.join(root, name), 0o700)
    check(root, ended)
    os.mkdir(os.path.join(root, "pg_wal", "archive_status"), 0o700)
    print("complete")


def check(root: str, ended: list[str]) -> None:
    """The data came before the WAL, and of that the first and the last segment are there."""
    first, start, stop = ended[0], *ended[1].split(" ")[1:]
    lacking = [name for name in (start, stop) if not os.path.exists(os.path.join(root, "pg_wal", name))]
    if first != END or lacking:
        raise SystemExit(f"not all has come: {first} {lacking}")


def play() -> None:
    """The part that the environment gives."""
    given = os.environ
    channel = socket.socket(fileno=int(given["PGHERD_SOCKET"]))
    root, part = given["PGHERD_DATA"], given["PGHERD_PART"]
    if part == "receive":
        receive(channel, root)
    elif part == "data":
        send_data(channel, root)
    else:
        label = bytes.fromhex(given["PGHERD_LABEL"])
        send_wal(channel, root, given["PGHERD_START"], given["PGHERD_STOP"], label)


if __name__ == "__main__":
    play()
