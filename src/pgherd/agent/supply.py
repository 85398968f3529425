"""A node's data, from whatever is there to what the spec says: made, exchanged, brought back, made anew when lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pgherd import failpoints
from pgherd.agent import disk, origins, report
from pgherd.agent.makings import Making, Makings
from pgherd.agent.origins import Impossible, Made, Maker, Source
from pgherd.agent.records import Record, note, read_record
from pgherd.agent.repositories import Repositories
from pgherd.drivers.postgres import Cluster, NotReady
from pgherd.errors import Interrupted
from pgherd.spec import NodeSpec, Origin, OriginStatus

#: Seconds that a convergence waits for work that may be short; longer work goes on without it.
_PATIENCE = 5.0
_LOST = origins.LOST


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
        record, wanted = read_record(self.cluster.directory), self.origin
        if wanted is not None and record.done != wanted.id:
            self._carry_out(wanted, record)
        elif record.exchanging == _LOST or not origins.is_there(self.cluster):
            self._rebuild(record)
        else:
            self._forget_aside(record)
            return False
        return True

    def _carry_out(self, origin: Origin, record: Record) -> None:
        made = Made()
        if record.exchanging != origin.id:
            made = self._made(origin)
            record.exchanging, record.origin = origin.id, self._status(origin.id, made)
            note(self.cluster.directory, record)
            failpoints.passing("origin made")
        self.stop()
        self._exchange(origin.id, record)

    def _rebuild(self, record: Record) -> None:
        """The data is gone: what the repository has is all there is."""
        self.kill()
        if record.exchanging != _LOST:
            if self.spec.repository is None:
                raise Impossible("The node's data is gone, and the service has no backup to make it anew from.")
            try:
                made = self._made(Origin(_LOST, own=True))
            except Impossible as error:
                raise Impossible(f"The node's data is gone and cannot be made anew: {error.message}") from None
            lost = (
                f"The node's data was gone; it is made anew from backup and archive, up to {made.until or 'their end'}."
                + (f" What was written later is not in it: the archive lacks {made.missing}." if made.missing else "")
            )
            record.exchanging = _LOST
            record.origin = msgspec.structs.replace(self._status(record.done, made), lost=lost)
            note(self.cluster.directory, record)
        self._exchange(_LOST, record)

    def _made(self, origin: Origin) -> Made:
        """What was made, once it is; waits a moment for it. Raises NotReady."""

        def work(making: Making) -> Made:
            repository = origin.repository or self.spec.repository
            source = self.cluster_of(origin.source) if origin.source else None
            free = disk.kept_free(self.cluster, self.reserve)
            maker = Maker(self.repositories, origin, self.cluster, source, repository, self.cores, making, free)
            return maker.make()

        making = self.makings.ensure(self.spec.node_id, origin.id, work)
        left = _PATIENCE
        while not making.ended.wait(0.1) and left > 0:
            left -= 0.1
            if self.overtaken():
                raise Interrupted("A newer wish for this node has come.")
        if making.key != origin.id or not making.ended.is_set():
            raise NotReady(f"The data is being made: {making.step or 'begins'}.")
        made: Made = self.makings.take(self.spec.node_id, making)
        return made

    def _exchange(self, origin_id: str, record: Record) -> None:
        failpoints.passing("origin exchange begin")
        origins.exchange(self.cluster, origin_id)
        failpoints.passing("origin exchange end")
        assert record.origin is not None
        kept = origins.bytes_aside(self.cluster) if self.spec.keep_aside else 0
        record.origin = msgspec.structs.replace(record.origin, at=report.now(), aside=kept)
        # All that was done in the old data is to be done in the new.
        record.admin, record.timescale, record.audited, record.exchanging = "", False, 0, ""
        if origin_id != _LOST:
            record.done = origin_id
        note(self.cluster.directory, record)
        origins.forget_aside(self.cluster, keep=origin_id if self.spec.keep_aside else "")

    def _forget_aside(self, record: Record) -> None:
        if record.origin is not None and record.origin.aside and not self.spec.keep_aside:
            origins.forget_aside(self.cluster)
            record.origin = msgspec.structs.replace(record.origin, aside=0)
            note(self.cluster.directory, record)

    @staticmethod
    def _status(origin_id: str, made: Made) -> OriginStatus:
        return OriginStatus(origin_id, "", made.left, made.timeline, made.until)
