"""The command line of the one-command stack: `python -m deploy.local up|demo|run COMMAND …`."""

import argparse
import importlib
import sys
from typing import Protocol, cast

from pydantic import ValidationError

from deploy.local.errors import LaunchError
from deploy.local.run import run as run_beside
from deploy.local.settings import LocalSettings

COMMANDS = {
    "up": "run lensd in the foreground until Ctrl-C",
    "demo": "run lensd, post one job of each kind, show the results and end",
}
RUN = "run lensd for as long as a command needs it; the command finds LENSD_URL and LENSD_KEY"


class Command(Protocol):
    """A module of this package named as its command."""

    def run(self, settings: LocalSettings) -> int: ...


def main() -> int:
    """Runs the command; the exit code is 1, with one line on stderr, when the stack cannot run."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="lensd on this machine, in one command")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, description=purpose)
    beside = commands.add_parser("run", help=RUN, description=RUN)
    beside.add_argument("beside", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")
    given = parser.parse_args()
    if given.command == "run" and not given.beside:
        beside.error("name the command to run")
    try:
        settings = LocalSettings()
    except ValidationError as error:
        for problem in error.errors():
            print(f"lensd: LENSD_{str(problem['loc'][0]).upper()}: {problem['msg']}", file=sys.stderr)
        return 1
    try:
        if given.command == "run":
            return run_beside(settings, given.beside)
        return cast("Command", importlib.import_module(f"deploy.local.{given.command}")).run(settings)
    except LaunchError as error:
        print(f"lensd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
