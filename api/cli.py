"""`lensd`: the operator's commands that need no model libraries.

lensd serve                     run the gateway
lensd keys new --name NAME      make an API key and show it once
lensd keys list                 the keys there are, without their secrets
lensd keys revoke ID            forget a key: from then on it is refused
lensd openapi                   print the OpenAPI document
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from api.settings import GatewaySettings, explain
from services.adapters.redis_client import make_client
from services.adapters.redis_keys import RedisKeyStore
from services.contracts.errors import LensdError
from services.tenants.keys import KeyStore, Scope, new_key


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = make_parser().parse_args(arguments)
    if parsed.command == "serve":
        from api.__main__ import main as serve  # noqa: PLC0415 - the other commands need no server

        return serve()
    if parsed.command == "openapi":
        from api.openapi import render  # noqa: PLC0415 - likewise

        print(render(), end="")
        return 0
    if parsed.action == "new" and parsed.unstored:
        print(new_key(parsed.owner, parsed.name, tuple(Scope))[0])
        return 0
    try:
        return run_keys(parsed, open_keys(GatewaySettings()))
    except ValidationError as error:
        print(explain(error), file=sys.stderr)
    except LensdError as error:
        print(f"lensd: {error.message}", file=sys.stderr)
    return 1


def open_keys(settings: GatewaySettings) -> KeyStore:
    return RedisKeyStore(make_client(store_url(settings), patient=False))


def store_url(settings: GatewaySettings) -> str:
    """Where the keys are: as LENSD_REDIS_URL says, else where the local stack that runs on LENSD_HOME keeps them."""
    note = settings.home / "run" / "redis-url"
    if "redis_url" not in settings.model_fields_set and note.is_file():
        return note.read_text(encoding="ascii").strip()
    return settings.redis_url.get_secret_value()


def run_keys(parsed: argparse.Namespace, keys: KeyStore) -> int:
    """`lensd keys …` on `keys`; the exit code."""
    match parsed.action:
        case "new":
            print(_make(parsed, keys))
        case "list":
            for key in keys.list():
                ends = f"until {key.expires_at:%Y-%m-%d %H:%M}Z" if key.expires_at else "no end"
                scopes = ",".join(key.scopes)
                print(f"{key.id}  {key.created_at:%Y-%m-%d %H:%M}Z  {ends}  {key.owner}  {scopes}  {key.name}")
        case "revoke" if not keys.delete(parsed.id):
            print(f"lensd: there is no key {parsed.id}: see `lensd keys list`", file=sys.stderr)
            return 1
    return 0


def _make(parsed: argparse.Namespace, keys: KeyStore) -> str:
    plaintext, key = new_key(parsed.owner, parsed.name, tuple(parsed.scope or (Scope.JOBS, Scope.READ)))
    if parsed.days is not None:
        key = key.model_copy(update={"expires_at": datetime.now(UTC) + timedelta(days=parsed.days)})
    keys.put(key)
    return plaintext


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lensd", description="lensd: interpretability as an API")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the gateway")
    commands.add_parser("openapi", help="print the OpenAPI document")
    actions = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        dest="action", required=True
    )
    new = actions.add_parser("new", help="make a key and show it once")
    new.add_argument("--name", default="unnamed", help="what it is for, to tell it from others")
    new.add_argument("--owner", default="operator", help="whose it is: keys of one owner see the same jobs")
    new.add_argument("--scope", action="append", type=Scope, choices=list(Scope), help="default: jobs and read")
    new.add_argument("--days", type=_days, help="days until it expires (default: never)")
    new.add_argument("--unstored", action="store_true", help="only print one, to be set as LENSD_BOOTSTRAP_KEY")
    actions.add_parser("list", help="the keys there are")
    revoke = actions.add_parser("revoke", help="forget a key")
    revoke.add_argument("id", help="the 12 characters after lensd_")
    return parser


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= 36_500:
        raise ValueError("between 0 and 36,500 days")
    return days


if __name__ == "__main__":
    sys.exit(main())
