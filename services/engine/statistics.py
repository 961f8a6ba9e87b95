"""What the engine has done so far, in numbers that only grow, and what waits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatistics:
    """`tokens` are the positions that rows had to compute, `padding` those computed besides to make batches even.

    `base_run_*` tell of the cache of unpatched runs; `waiting_rows`, `waiting_jobs` and `base_run_bytes` are of now.
    """

    batches: int = 0
    rows: int = 0
    failed_rows: int = 0
    tokens: int = 0
    padding: int = 0
    seconds: float = 0.0
    waiting_rows: int = 0
    waiting_jobs: int = 0
    base_run_hits: int = 0
    base_run_misses: int = 0
    base_run_evictions: int = 0
    base_run_bytes: int = 0
