"""Figures for Prometheus on a listener of their own, which asks for no key: reach it from the inside alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server


def new_registry() -> CollectorRegistry:
    """A registry that has the process's own figures already: memory, CPU time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


@contextmanager
def listening(registry: CollectorRegistry, host: str, port: int | None) -> Iterator[None]:
    """Serve the figures for the length of the block; not at all without a port. Raises OSError when it is taken."""
    if port is None:
        yield
        return
    server, thread = start_http_server(port, host, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
