"""`lensd`: the operator's commands that need no model libraries.

lensd serve                     run the gateway
lensd keys new --name NAME      make an API key and show it once
lensd keys list                 the keys there are, without their secrets
lensd keys rotate ID            give a key a fresh secret and show it once
lensd keys revoke ID            forget a key: from then on it is refused
lensd openapi                   print the OpenAPI document
"""

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from api.keys_cli import add_keys_commands, open_keys, run_keys
from api.settings import GatewaySettings, explain
from services.contracts.errors import LensdError
from services.tenants.keys import Scope, new_key


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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lensd", description="lensd: interpretability as an API")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the gateway")
    commands.add_parser("openapi", help="print the OpenAPI document")
    add_keys_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
