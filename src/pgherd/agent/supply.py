"""A node's data, from whatever is there to what the spec says: made, exchanged, brought back, made anew when lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pgherd import failpoints
from pgherd.agent import disk, held, origins, report
from pgherd.agent.makings import Making, Makings
from pgherd.agent.origins import Impossible, Made, Maker, Source
from pgherd.agent.records import Record, note, read_record
from pgherd.agent.repositories import Repositories
from pgherd.drivers.postgres import Cluster, NotReady
from pgherd.errors import Interrupted
from pgherd.spec import NodeSpec, Origin, OriginStatus

#: Seconds that a convergence waits for work that may be short; longer work goes on without it.
_PATIENCE = 5.0


@dataclass
class Supply:
    """One run for one node. `origin`: the spec's, unless it was in force before.

    `cluster_of` gives another node's cluster and whether it runs, None: it is not on this host. `stop` ends the node's
    servers, `kill` does so without asking them. `reserve`: percent of the host's disk that stay free.
    """

    repositories: Repositories
    makings: Makings
    spec: NodeSpec
    origin: Origin | None
    cluster: Cluster
    cores: int
    cluster_of: Callable[[str], Source | None]
    stop: Callable[[], None]
    kill: Callable[[], None]
    overtaken: Callable[[], bool]
    reserve: int = 0

    def ensure(self) -> bool:
        """The data is the spec's; returns whether it was exchanged. Raises NotReady while it is made, Impossible."""
        record = read_record(self.cluster.directory)
        wanted = self.origin if self.origin is not None and self.origin.id != record.done else None
        if record.exchanging not in ("", origins.LOST, wanted.id if wanted else ""):
            self._settle(record)
        if wanted is not None and not self._has_all(wanted, record):
            self._carry_out(wanted, record)
        elif record.exchanging == origins.LOST or not held.is_there(self.cluster):
            self._rebuild(record)
        else:
            self._forget_confirmed(record)
            self._tidy(record)
            return False
        return True

    def _settle(self, record: Record) -> None:
        """No operation waits for this exchange any more: it is given up unless it has begun."""
        if held.is_there(self.cluster, record.taken) and held.is_there(self.cluster):
            record.exchanging, record.coming = "", None
            note(self.cluster.directory, record)
        else:
            self.stop()
            self._exchange(record.exchanging, record)

    def _has_all(self, origin: Origin, record: Record) -> bool:
        """Whether what is to come back after a delete is still here, with what the repository may not have yet."""
        if not origin.back or record.exchanging == origin.id or not held.is_there(self.cluster):
            return False
        record.done = origin.id
        note(self.cluster.directory, record)
        return True

    def _carry_out(self, origin: Origin, record: Record) -> None:
        if record.exchanging != origin.id:
            self._begin(origin.id, record)
            made = self._made(origin, record.kept)
            record.exchanging, record.coming = origin.id, self._status(origin.id, made)
            record.taken = f"before-{record.kept}" if origin.undo else f"made-{origin.id}"
            note(self.cluster.directory, record)
            failpoints.passing("origin made")
        self.stop()
        self._exchange(origin.id, record)

    def _rebuild(self, record: Record) -> None:
        """The data is gone: what the repository has is all there is."""
        self.kill()
        if record.exchanging != origins.LOST:
            if self.spec.repository is None:
                raise Impossible("The node's data is gone, and the service has no backup to make it anew from.")
            self._begin(origins.LOST, record)
            try:
                made = self._made(Origin(origins.LOST, own=True), "")
            except Impossible as error:
                raise Impossible(f"The node's data is gone and cannot be made anew: {error.message}") from None
            lost = (
                f"The node's data was gone; it is made anew from backup and archive, up to {made.until or 'their end'}."
                + (f" What was written later is not in it: the archive lacks {made.missing}." if made.missing else "")
            )
            record.exchanging, record.taken = origins.LOST, f"made-{origins.LOST}"
            record.coming = msgspec.structs.replace(self._status(record.done, made), lost=lost)
            note(self.cluster.directory, record)
        self._exchange(origins.LOST, record)

    def _begin(self, origin_id: str, record: Record) -> None:
        """What is left from now on is known to be this origin's; what others left in vain is gone."""
        if record.unclean == origin_id:
            return
        self._tidy(record)
        if record.unclean:
            raise NotReady("What an earlier operation has begun is being ended.")
        record.unclean = origin_id
        note(self.cluster.directory, record)

    def _made(self, origin: Origin, kept: str) -> Made:
        """What was made, once it is; waits a moment for it. Raises NotReady."""

        def work(making: Making) -> Made:
            repository = origin.repository or self.spec.repository
            source = self.cluster_of(origin.source) if origin.source else None
            free = disk.kept_free(self.cluster, self.reserve)
            maker = Maker(self.repositories, origin, self.cluster, source, repository, self.cores, making, free, kept)
            return maker.make()

        making = self.makings.ensure(self.spec.node_id, origin.id, work)
        left = _PATIENCE
        while not making.ended.wait(0.1) and left > 0:
            left -= 0.1
            if self.overtaken():
                raise Interrupted("A newer wish for this node has come.")
        if making.key != origin.id or making.cancelled.is_set() or not making.ended.is_set():
            raise NotReady(f"The data is being made: {making.step or 'begins'}.")
        made: Made = self.makings.take(self.spec.node_id, making)
        return made

    def _exchange(self, origin_id: str, record: Record) -> None:
        failpoints.passing("origin exchange begin")
        held.exchange(self.cluster, origin_id, record.taken)
        failpoints.passing("origin exchange end")
        assert record.coming is not None
        kept = self._kept_by(origin_id, record)
        aside = held.bytes_aside(self.cluster, kept) if kept else 0
        record.origin = msgspec.structs.replace(record.coming, at=report.now(), kept=kept if aside else "", aside=aside)
        # All that was done in the old data is to be done in the new.
        record.admin, record.timescale, record.audited = "", False, 0
        record.exchanging, record.taken, record.coming, record.unclean = "", "", None, origin_id
        if origin_id != origins.LOST:
            record.done = origin_id
        note(self.cluster.directory, record)
        failpoints.passing("origin exchange noted")
        self._tidy(record)

    def _kept_by(self, origin_id: str, record: Record) -> str:
        """From before which origin data is kept after this exchange: the first that nobody confirmed or undid, so that
        an undo leads back to what was there before all of them. What is lost leaves nothing to keep."""
        if record.taken == f"before-{record.kept}":
            return ""
        return record.kept or ("" if origin_id == origins.LOST else origin_id)

    def _forget_confirmed(self, record: Record) -> None:
        if record.origin is not None and record.kept and record.kept == self.spec.confirmed:
            # Noted first: what is half deleted must not come back.
            record.origin = msgspec.structs.replace(record.origin, kept="", aside=0)
            record.unclean = record.unclean or self.spec.confirmed
            note(self.cluster.directory, record)
            failpoints.passing("origin forgotten")

    def _tidy(self, record: Record) -> None:
        """Nothing is left but what is in force and what is kept; later, while something is still being made."""
        if record.unclean and self.makings.cancel(self.spec.node_id):
            held.tidy(self.cluster, record.kept)
            record.unclean = ""
            note(self.cluster.directory, record)

    @staticmethod
    def _status(origin_id: str, made: Made) -> OriginStatus:
        return OriginStatus(origin_id, "", made.left, made.timeline, made.until)
