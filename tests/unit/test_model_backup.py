"""When a backup is due, of which kind, how far one can go back, what is kept; and pgBackRest's words."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from pgherd.agent.backups import needed, queue
from pgherd.drivers import pgbackrest, recovery
from pgherd.drivers.pgbackrest import Place, Program, Secrets
from pgherd.errors import HostFault
from pgherd.model.backup import is_due, latest_slot, wants_full, window
from pgherd.model.moment import check_moment
from pgherd.model.service import Schedule
from pgherd.spec import S3, Backup, Repository, RepositoryStatus

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
RUN, CONFIG, REPO = Path("/n/run"), Path("/n/config"), Path("/b/s/repo")
PLACE = Place(Path("/n/data/pgdata"), RUN, 21600, Path("/n/data/spool"), CONFIG, REPO)
NEW, OLD = Program(Path("/p"), (2, 55, 1)), Program(Path("/p"), (2, 45))


def backup(days: float, parent: str = "", damaged: bool = False) -> Backup:
    """One that ended so many days ago."""
    at = (NOW - timedelta(days=days)).isoformat().replace("+00:00", "Z")
    return Backup(f"b{days}", at, at, 1, 1, parent, damaged)


@pytest.mark.parametrize(
    ("hour", "minute", "slot"),
    [(12, 0, NOW), (11, 59, NOW - timedelta(minutes=1)), (12, 1, NOW - timedelta(hours=23, minutes=59))],
)
def test_the_latest_slot(hour: int, minute: int, slot: datetime) -> None:
    assert latest_slot(Schedule(hour, minute), NOW) == slot


def test_what_is_due() -> None:
    schedule = Schedule(11, 0)
    assert not is_due(schedule, NOW - timedelta(seconds=5), [], "", NOW)
    assert is_due(schedule, NOW - timedelta(seconds=40), [], "", NOW)
    assert not is_due(schedule, NOW, [backup(0.02)], "", NOW)
    assert is_due(schedule, NOW, [backup(0.05)], "", NOW)
    assert is_due(schedule, NOW, [backup(5)], "", NOW), "missed ones are made up for"
    assert not is_due(schedule, NOW, [backup(5), backup(0.01)], "", NOW), "once"
    gap = (NOW - timedelta(minutes=1)).isoformat()
    assert is_due(schedule, NOW, [backup(0.01)], gap, NOW)
    assert not is_due(schedule, NOW, [backup(0.0001)], gap, NOW)


def test_full_ones() -> None:
    full, more = backup(9), [backup(8 - i, "x") for i in range(8)]
    assert wants_full([], 3)
    assert [wants_full([full, *more[:i]], 1) for i in range(3)] == [True, True, True]
    assert [wants_full([full, *more[:i]], 3) for i in range(3)] == [False, False, True]
    assert [wants_full([full, *more[:i]], 30) for i in (0, 5, 6)] == [False, False, True]
    assert wants_full([full, backup(1, "x", damaged=True)], 30)


@pytest.mark.parametrize(
    ("ages", "keep", "fulls"),
    [
        ([0], 1, 1),
        ([1, 0], 1, 1),
        ([3, 2, 1, 0], 3, 3),
        ([2, 1, 0], 3, 3),
        ([3, 1.99, 1, 0], 3, 4),  # a minute less than two days is not two days
        ([0.3, 0.2, 0.1, 0], 3, 4),  # many in one day: the two days are not there yet
        ([5, 0.2, 0.1, 0], 3, 4),
        ([9, 5, 0.2, 0.1, 0], 3, 4),
    ],
)
def test_what_is_kept(ages: list[float], keep: int, fulls: int) -> None:
    assert needed([backup(age) for age in ages], keep, NOW) == fulls


def test_what_builds_on_another_keeps_it_and_damage_replaces_nothing() -> None:
    chain = [backup(9), backup(4), backup(3, "b4"), backup(2, "b3"), backup(1), backup(0, "b1")]
    assert needed(chain, 3, NOW) == 2
    assert needed([backup(2), backup(1), backup(0, damaged=True)], 1, NOW) == 2


def test_the_window() -> None:
    assert window([], "", "") == ("", "")
    first, second = backup(2), backup(1)
    begins = [(NOW - timedelta(days=d) + timedelta(seconds=1)).isoformat().replace("+00:00", "Z") for d in (2, 1)]
    assert window([first, second], NOW.isoformat(), "") == (begins[0], NOW.isoformat())
    assert window([first, second], "", "") == tuple(begins)
    assert window([first], first.ended_at, "") == (begins[0], begins[0])
    gap = (NOW - timedelta(days=1.5)).isoformat().replace("+00:00", "Z")
    assert window([first, second], NOW.isoformat(), gap)[0] == begins[1]
    assert window([backup(2, damaged=True), second], "", "")[0] == begins[1]


def test_what_the_window_names_is_accepted() -> None:
    backups = [backup(2), backup(1)]
    for moment in map(datetime.fromisoformat, window(backups, NOW.isoformat(), "")):
        known = RepositoryStatus(True, backups, archived_at=NOW.isoformat())
        check_moment(moment, known, "to", lives=False, now=NOW)
        named = [msgspec.structs.replace(b, wal_start="0" * 23 + "1", wal_stop="0" * 23 + "1") for b in backups]
        assert recovery.usable(named, 0, {}, moment)


def test_the_configuration_of_a_directory() -> None:
    repository = Repository("s", "directory", "sealed", 3)
    text = pgbackrest.render(NEW, repository, Secrets("c"), PLACE, processes=2, queue=queue_of(8))
    assert "repo1-path=/b/s/repo\n" in text and "repo1-cipher-pass=c\n" in text and "repo1-block=y\n" in text
    assert "repo1-block-size-map=1MiB=8KiB\nrepo1-block-size-map=11MiB=16KiB\n" in text
    assert f"archive-push-queue-max={2 << 30}\n" in text and "sealed" not in text
    assert "repo1-block" not in pgbackrest.render(OLD, repository, Secrets("c"), PLACE, processes=2)
    with pytest.raises(HostFault):
        pgbackrest.render(NEW, repository, Secrets("c\nrepo1-path=/etc"), PLACE, processes=2)


def test_what_runs_beside_the_service_is_modest_and_a_restore_is_not() -> None:
    assert [pgbackrest.beside(cores) for cores in (0, 2, 64)] == [1, 2, 4]
    assert "--process-max=64" in pgbackrest.restore(NEW, PLACE.config, processes=64)
    assert not any("process-max" in word for word in pgbackrest.restore(NEW, PLACE.config))
    repository = Repository("s", "directory", "sealed", 3)
    assert "process-max=64\n" in pgbackrest.render(NEW, repository, Secrets("c"), PLACE, processes=64)


def queue_of(gib: int) -> int:
    from tests.unit.test_drivers_postgres_settings import SPEC

    return queue(msgspec.structs.replace(SPEC, disk_bytes=gib << 30))


def test_the_configuration_of_s3() -> None:
    s3 = S3("s3.example.com:9000", "bucket", "r", "k", "s", prefix="/zone/", ca="PEM")
    repository = Repository("service", "s3", "sealed", 3, s3)
    text = pgbackrest.render(NEW, repository, Secrets("c", "key", "secret"), PLACE, processes=2)
    for line in ("repo1-s3-endpoint=s3.example.com", "repo1-storage-port=9000", "repo1-path=/zone/service"):
        assert f"{line}\n" in text
    assert "repo1-storage-ca-file=/n/config/repository-ca.crt\n" in text
    assert pgbackrest.store_port(repository) == 9000


def test_secrets_are_in_no_argument_list() -> None:
    for argv in (
        pgbackrest.stanza_create(NEW, PLACE.config),
        pgbackrest.backup(NEW, PLACE.config, full=True, fast=True),
        pgbackrest.expire(NEW, PLACE.config, fulls=2),
        pgbackrest.restore(NEW, PLACE.config, backup="x", target=["--type=time", "--target=y"]),
        pgbackrest.verify(NEW, PLACE.config),
    ):
        assert argv[0] == "/p" and argv[1] == "--config=/n/config/pgbackrest.conf"
        assert not any("cipher" in word or "key" in word for word in argv)


INFO = [
    {
        "name": "main", "status": {"code": 0, "message": "ok"},
        "archive": [{"min": "000000010000000000000001", "max": "000000010000000000000009"}],
        "backup": [
            {
                "label": "20261124-150000F", "prior": None, "error": True, "timestamp": {"start": 10, "stop": 20},
                "info": {"size": 100, "repository": {"delta": 7}}, "archive": {"start": "A", "stop": "B"},
            }
        ],
    }
]  # fmt: skip


def test_info_is_read() -> None:
    found = pgbackrest.parse_info(json.dumps(INFO))
    assert (found.exists, found.wal_last) == (True, "000000010000000000000009")
    [one] = found.backups
    assert (one.ended_at, one.size, one.stored, one.damaged) == ("1970-01-01T00:00:20Z", 100, 7, True)
    assert pgbackrest.parse_info("[]").exists is False


@pytest.mark.parametrize(
    "text", ["", "{}", '[{"name": 1}]', json.dumps(INFO).replace("20,", "99999999999999999,").replace("10,", "9e30,")]
)
def test_a_wrong_answer_is_refused(text: str) -> None:
    with pytest.raises(HostFault):
        pgbackrest.parse_info(text)


def test_words() -> None:
    lines = ["P00   INFO: backup start", "P01 DETAIL: backup file /x/1234 (8KB, 12.50%) checksum 00"]
    assert pgbackrest.progress(lines) == 0.125
    assert pgbackrest.progress([]) == 0.0
    said = ["P00  ERROR: [082]: WAL segment 0001 was not archived before the timeout", "HINT: check"]
    assert pgbackrest.complaint(said) == "WAL segment 0001 was not archived before the timeout"
    said = [
        "P00  ERROR: [103]: unable to load:",
        "       ProtocolError: 403 (Forbidden)",
        "       HINT: is it",
        "P00 x",
    ]
    assert pgbackrest.complaint(said) == "unable to load: ProtocolError: 403 (Forbidden)"
