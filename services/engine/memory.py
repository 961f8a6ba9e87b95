"""Telling that memory ran out from everything else that may be raised."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's, numpy's or torch's way to say so. torch's allocator for the CPU has no type of its
    own: it raises RuntimeError("… DefaultCPUAllocator: can't allocate memory: you tried to allocate … bytes …")."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
