"""From rows to tasks: what each costs, and which may share a batch."""

from collections.abc import Sequence

from services.contracts.site import SiteName
from services.engine.agenda import Lane
from services.engine.needs import needs_of
from services.engine.row import Row
from services.engine.scheduler import Task
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel

_BUCKETS = (8, 12, 16, 24, 32, 48, 64, 96, 128)


def plan(model: LoadedModel, rows: Sequence[Row], ticket: JobTicket) -> list[Task]:
    """One task per row, in the order in which they are best run."""
    lanes = [Lane(row, ticket.owner) for row in rows]
    foreseen = needs_of(lanes)
    tasks = []
    for lane in lanes:
        depth = _depth(model, lane.row)
        length = len(lane.row.tokens)
        kind = (model, depth, lane.row.readout is None, bucket(length))
        tasks.append(Task(model, lane, kind, length * max(depth, 1), ticket, foreseen))
    return tasks


def bucket(length: int) -> int:
    """Rows whose lengths fall into one bucket may be padded to the longest of them."""
    fitting = [limit for limit in _BUCKETS if limit >= length]
    return fitting[0] if fitting else -(-length // 64) * 64


def _depth(model: LoadedModel, row: Row) -> int:
    """How many layers a row has to go through."""
    if row.readout is not None:
        return model.facts.layers
    sites = [capture.site for capture in row.captures]
    return (
        max((-1 if site.name is SiteName.EMBED or site.layer is None else site.layer for site in sites), default=-1) + 1
    )
