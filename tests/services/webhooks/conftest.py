from tests.services.adapters.valkey import redis_url, shared_server

__all__ = ["redis_url", "shared_server"]
