"""The queue of messages in Redis; the keys are listed in `lua/delivery_prelude.lua`."""

from collections.abc import Sequence

from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.adapters.redis_records import microseconds
from services.webhooks.store import KEPT_OUTCOMES, MAX_OF_AN_OWNER, Delivery, Settlement


class RedisDeliveries:
    """Implements `services.webhooks.store.Deliveries`. What queues a message is `queue_message` of job_prelude.lua."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._scripts = LuaScripts(client, prelude="delivery_prelude")

    def claim(self, at_most: int, lease_s: float) -> Sequence[Delivery]:
        claimed = self._scripts.run("delivery_claim", at_most, microseconds(lease_s), MAX_OF_AN_OWNER)
        return [
            Delivery(message.decode(), owner.decode(), endpoint.decode(), job.decode(), attempt)
            for message, owner, endpoint, job, attempt in claimed
        ]

    def settle(self, delivery: Delivery, settlement: Settlement) -> bool:
        again = settlement.again_in_s
        return bool(
            self._scripts.run(
                "delivery_settle",
                delivery.id,
                delivery.owner,
                delivery.attempt,
                "" if again is None else microseconds(again),
                "" if settlement.outcome is None else settlement.outcome.model_dump_json(),
                int(settlement.disable),
                KEPT_OUTCOMES,
                MAX_OF_AN_OWNER,
            )
        )

    def waiting(self, owner: str) -> int:
        with store_errors():
            return self._client.zcard(f"lensd:deliveries:{owner}")
