"""A real Valkey server for tests, and how its clock is moved."""

import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from services.adapters.embedded_valkey import EmbeddedValkey
from services.adapters.parent_death import dies_with_parent

TIME_FIELDS = ("created_at", "deadline_at", "started_at", "finished_at", "expires_at", "last", "swept", "reprieve")


_ACL_LINE = re.compile(r"^ACL SETUSER lensd on >PASSWORD (.+)$", re.MULTILINE)
ACL_RULES = _ACL_LINE.findall((Path(__file__).parents[3] / "docs" / "operating.md").read_text(encoding="utf-8"))[0]
"""What a user of the store may do by `docs/operating.md`."""
TEST_RIGHTS = "+eval +keys +flushall +config|set"
"""What tests do to a server beside what lensd does."""


class Server:
    """A server that can be killed and started again on its data."""

    def __init__(self, valkey: EmbeddedValkey) -> None:
        self._valkey = valkey
        self._process: subprocess.Popen[bytes] | None = None
        self.url = valkey.url

    def start(self) -> None:
        self._process = subprocess.Popen(
            dies_with_parent(self._valkey.command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(self._valkey.lock_fd,),
        )
        give_up_at = time.monotonic() + 20
        while not self._valkey.answers():
            assert time.monotonic() < give_up_at, "the Valkey server does not start"
            time.sleep(0.01)

    def stop(self) -> None:
        """Its last writes are kept; `kill` may lose those of the last second."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def valkey_server(directory: Path, **options: int) -> Iterator[Server]:
    with EmbeddedValkey(directory / "data", directory / "run", **options) as valkey:
        server = Server(valkey)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(shared_server: Server) -> str:
    """The address of an empty server, for a user who may no more than `docs/operating.md` says, and what tests need."""
    with Redis.from_url(shared_server.url) as client:
        client.flushall()
    return restricted(shared_server.url, f"{ACL_RULES} {TEST_RIGHTS}")


def restricted(url: str, rules: str) -> str:
    """The address of the same server for a user with these rules alone."""
    password = secrets.token_urlsafe(16)
    with Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "lensd", "reset", "on", f">{password}", *rules.split())
    return f"redis://lensd:{password}@{url.rpartition('@')[2]}"


def pass_time(client: Redis, seconds: float) -> None:
    """As if `seconds` had passed: everything that the job store remembers happened that much earlier."""
    client.eval(_EARLIER, 0, round(seconds * 1_000_000), *TIME_FIELDS)


_EARLIER = """
local days = math.floor(ARGV[1] / 86400000000)
for _, key in ipairs(redis.call('KEYS', 'lensd:*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'zset' then
    local entries = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #entries, 2 do
      redis.call('ZADD', key, string.format('%.0f', tonumber(entries[i + 1]) - ARGV[1]), entries[i])
    end
  elseif kind == 'hash' then
    for i = 2, #ARGV do
      local time = redis.call('HGET', key, ARGV[i])
      if time and tonumber(time) then redis.call('HSET', key, ARGV[i], string.format('%.0f', time - ARGV[1])) end
    end
    if days > 0 and redis.call('HEXISTS', key, 'charged_on') == 1 then
      redis.call('HINCRBY', key, 'charged_on', -days)
    end
  elseif days > 0 and key:match('^lensd:work:') then
    local owner, day = key:match('^(.*:)(%d+)$')
    redis.call('RENAME', key, owner .. string.format('%.0f', day - days))
  end
end
"""
