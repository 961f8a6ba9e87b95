"""The Lua scripts beside this file, each run as one atomic step on the server."""

from functools import cache
from importlib import resources
from typing import Any

from redis import Redis
from redis.commands.core import Script

from services.adapters.redis_client import store_errors

Argument = str | bytes | int | float


class LuaScripts:
    """Runs scripts by name; their headers say what they take and return."""

    def __init__(self, client: Redis, prelude: str | tuple[str, ...] = ()) -> None:
        """`prelude` names what is put before each script, in this order."""
        self._client = client
        self._prelude = (prelude,) if isinstance(prelude, str) else prelude
        self._scripts: dict[str, Script] = {}

    def run(self, name: str, *arguments: Argument) -> Any:
        """Raises Unavailable(STORE_UNAVAILABLE)."""
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._client.register_script(_source(name, self._prelude))
        with store_errors():
            return script(args=arguments)


@cache
def _source(name: str, prelude: tuple[str, ...]) -> str:
    """The script, its preludes after the shebang line, which must come first."""
    lua = resources.files("services.adapters") / "lua"
    shebang, _, body = (lua / f"{name}.lua").read_text().partition("\n")
    shared = "\n".join((lua / f"{part}.lua").read_text() for part in prelude)
    return f"{shebang}\n{shared}\n{body}"
