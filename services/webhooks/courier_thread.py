"""A courier on an event loop of its own: whatever receivers do to it, the gateway's requests do not wait for it."""

import asyncio
import threading

from services.webhooks.courier import PARTING_S, Courier


class CourierThread:
    """Works from `start` to `stop`."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._works = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes a few seconds at most; what is under way then is sent again by another courier."""
        if self._works.wait(timeout=PARTING_S) and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout=2 * PARTING_S)

    def _run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with self._courier:
            self._loop = asyncio.get_running_loop()
            self._works.set()
            await self._stopping.wait()
