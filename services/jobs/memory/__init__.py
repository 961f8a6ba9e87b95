"""The fakes of the ports, for tests: the same promises, kept in one process."""

from services.jobs.memory.blobs import MemoryBlobs
from services.jobs.memory.cache import MemoryResultCache
from services.jobs.memory.doorbell import MemoryDoorbell
from services.jobs.memory.events import MemoryEvents
from services.jobs.memory.store import MemoryJobStore
from services.jobs.memory.workers import MemoryWorkers

__all__ = ["MemoryBlobs", "MemoryDoorbell", "MemoryEvents", "MemoryJobStore", "MemoryResultCache", "MemoryWorkers"]
