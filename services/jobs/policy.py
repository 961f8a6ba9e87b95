"""The figures that the life of a job turns on; every process of a deployment uses the same."""

from dataclasses import dataclass

from services.jobs.record import Size


@dataclass(frozen=True)
class JobPolicy:
    """Times in seconds, bounds per pool."""

    lease_s: float = 15.0
    """How long a claim holds without a heartbeat."""

    heartbeat_s: float = 0.25
    """How often a worker beats: also how soon a running job learns of a cancel."""

    max_blamed: int = 3
    """Deaths of a worker in a chunk with the job, after which the job fails."""

    max_unexplained: int = 10
    """Deaths of a worker between chunks with the job claimed, after which the job fails: nothing else is to blame."""

    max_queued: int = 20_000
    """Queued jobs of a pool."""

    batch_share: float = 0.5
    """Share of `max_queued` from which on jobs of the priority `batch` are not admitted: the rest is for those that
    somebody waits for."""

    small_cost: int = 20_000
    """Token-layers up to which a job counts as small: about a second of SmolLM2-135M on two cores."""

    max_memory: float = 0.8
    """Share of the server's memory bound over which no job is admitted."""

    max_kept: int = 100_000
    """Jobs of an owner that are kept: those that live, and those that ended less than `retention_s` ago."""

    max_kept_share: float = 0.5
    """Share of what all jobs may take of the server's memory that one owner's jobs, batches and blobs may take."""

    max_kept_batches: int = 1_000
    """Batches of an owner that are kept."""

    max_renewed: float = 0.75
    """Share of what an owner may keep over which jobs of its unfinished batches are kept no longer than other jobs."""

    max_answers: int = 10_000
    """Kept jobs of an owner that the result cache answered; over it jobs run. Answers come faster than any worker, and
    would fill the store before the first of them is forgotten."""

    roomy_memory: float = 0.2
    """Share of the server's memory bound up to which results of a middling size stay in their records: half of what one
    owner may take."""

    retention_s: float = 24 * 3600.0
    """How long a job is kept after its end."""

    reap_every_s: float = 2.0
    """How often the reaper goes round, over all processes together."""

    ring_after_s: float = 3.0
    """How long a queued job waits before the reaper rings for it again."""

    sweep_every_s: float = 600.0
    """How often blobs are checked for jobs that are no more."""

    def size_of(self, cost: int) -> Size:
        """The size of a job that is estimated at `cost` token-layers."""
        return Size.SMALL if cost <= self.small_cost else Size.LARGE

    @property
    def outage_s(self) -> float:
        """A pause between two rounds of the reaper that can only be an outage: leases then get one more term."""
        return 3 * self.reap_every_s
