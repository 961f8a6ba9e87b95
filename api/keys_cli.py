"""`lensd keys …`: the operator's commands for API keys. They need no key, only a way to the store."""

import argparse
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from api.settings import GatewaySettings
from services.adapters.redis_audit import RedisAuditLog
from services.adapters.redis_client import make_client
from services.adapters.redis_keys import RedisKeyStore
from services.contracts.base import CatalogueId
from services.contracts.errors import LensdError
from services.tenants.administration import SHELL, KeyAdministration, KeyWish
from services.tenants.keys import MAX_DAYS, MAX_OVERLAP_S, ApiKey, KeyName, Owner, Scope
from services.tenants.limits import KeyLimits

MAX_OVERLAP_HOURS = MAX_OVERLAP_S / 3600


def open_keys(settings: GatewaySettings) -> KeyAdministration:
    client = make_client(store_url(settings), patient=False)
    return KeyAdministration(RedisKeyStore(client), RedisAuditLog(client))


def store_url(settings: GatewaySettings) -> str:
    """Where the keys are: as LENSD_REDIS_URL says, else where the local stack that runs on LENSD_HOME keeps them."""
    note = settings.home / "run" / "redis-url"
    if "redis_url" not in settings.model_fields_set and note.is_file():
        return note.read_text(encoding="ascii").strip()
    return settings.store_url


def run_keys(parsed: argparse.Namespace, administration: KeyAdministration) -> int:
    """`lensd keys …` on the keys of `administration`; the exit code."""
    try:
        match parsed.action:
            case "new":
                print(administration.create(_wish(parsed), SHELL)[0])
            case "list":
                used = administration.keys.last_used()
                for key in administration.keys.list():
                    last = f"used {used[key.id]:%Y-%m-%d %H:%M}Z" if key.id in used else "never used"
                    print(f"{_line(key)}  {last}")
            case "rotate":
                print(administration.rotate(parsed.id, timedelta(hours=parsed.overlap_hours), SHELL)[0])
            case "revoke":
                administration.revoke(parsed.id, SHELL, even_the_last=parsed.even_the_last)
    except LensdError as error:
        print(f"lensd: {error.message}", file=sys.stderr)
        return 1
    return 0


def add_keys_commands(commands: Any) -> None:
    """Add `keys` to the commands of a parser."""
    keys = commands.add_parser("keys", help="make, list, rotate and revoke API keys")
    actions = keys.add_subparsers(dest="action", required=True)
    _add_new(actions.add_parser("new", help="make a key and show it once"))
    actions.add_parser("list", help="the keys there are")
    rotate = actions.add_parser("rotate", help="give a key a fresh secret and show it once")
    rotate.add_argument("id", help="the 12 characters after lensd_")
    rotate.add_argument(
        "--overlap-hours",
        type=_between(0, MAX_OVERLAP_HOURS),
        default=0.0,
        help="how long the present secret stays good beside the fresh one (default: not at all)",
    )
    revoke = actions.add_parser("revoke", help="forget a key: every gateway refuses it from then on")
    revoke.add_argument("id", help="the 12 characters after lensd_")
    revoke.add_argument("--even-the-last", action="store_true", help="also the last key with the scope admin")


def _add_new(new: argparse.ArgumentParser) -> None:
    new.add_argument("--name", type=_like(KeyName), default="unnamed", help="what it is for, to tell it from others")
    new.add_argument(
        "--owner", type=_like(Owner), default="operator", help="whose it is: keys of one owner see the same jobs"
    )
    new.add_argument("--scope", action="append", type=Scope, choices=list(Scope), help="default: jobs and read")
    new.add_argument(
        "--model",
        action="append",
        type=_like(CatalogueId),
        dest="models",
        help="a model it may use, with its SAEs; several times for several (default: all)",
    )
    new.add_argument("--days", type=_days, help="days until it expires (default: never)")
    new.add_argument("--unstored", action="store_true", help="only print one, to be set as LENSD_BOOTSTRAP_KEY")
    limits = new.add_argument_group("limits, where they are to differ from the gateway's settings")
    for name, field in KeyLimits.model_fields.items():
        described = field.description or "Requests per second."
        limits.add_argument(f"--{name.replace('_', '-')}", type=_limit(name), help=described.lower().rstrip("."))


def _wish(parsed: argparse.Namespace) -> KeyWish:
    return KeyWish(
        owner=parsed.owner,
        name=parsed.name,
        scopes=tuple(parsed.scope or (Scope.JOBS, Scope.READ)),
        models=None if parsed.models is None else tuple(parsed.models),
        limits=KeyLimits(**{name: getattr(parsed, name) for name in KeyLimits.model_fields}),
        lifetime=None if parsed.days is None else timedelta(days=parsed.days),
    )


def _line(key: ApiKey) -> str:
    ends = f"until {key.expires_at:%Y-%m-%d %H:%M}Z" if key.expires_at else "no end"
    models = "all models" if key.models is None else ",".join(key.models) or "no model"
    limits = "".join(f"  {name}={value:g}" for name, value in key.limits.model_dump(exclude_none=True).items())
    scopes = ",".join(key.scopes)
    return f"{key.id}  {key.created_at:%Y-%m-%d %H:%M}Z  {ends}  {key.owner}  {scopes}  {models}  {key.name}{limits}"


def _like(annotation: Any) -> Callable[[str], Any]:
    """A converter for argparse that accepts what the annotation does."""
    return _converter(TypeAdapter(annotation).validate_python)


def _limit(name: str) -> Callable[[str], Any]:
    """A converter for argparse that accepts what KeyLimits does under `name`."""
    return _converter(lambda text: getattr(KeyLimits.model_validate({name: text}), name))


def _converter(validate: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return validate(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from error

    return convert


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"between 0 and {MAX_DAYS:,} days")
    return days


def _between(least: float, most: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        number = float(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"between {least:g} and {most:g}")
        return number

    return convert
