"""`python -m deploy.local run COMMAND …`: the stack for as long as a command needs it.

The command finds the server and a key of its own in `LENSD_URL` and `LENSD_KEY`.
"""

import os
import subprocess
import sys
from datetime import timedelta

from deploy.local.logs import StreamLog
from deploy.local.settings import LocalSettings
from deploy.local.signals import ended_by_signals
from deploy.local.stack import Stack

KEY_LIFETIME = timedelta(hours=12)


def run(settings: LocalSettings, command: list[str]) -> int:
    """Runs the command beside the stack; the command's exit code. Raises LaunchError when the stack cannot run."""
    path = settings.home / "run" / "run.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file, ended_by_signals():
        try:
            with Stack(settings, StreamLog(file)) as stack:
                key = stack.issue_key(command[0], KEY_LIFETIME)
                print(f"lensd answers at {settings.base_url}; its processes' lines are in {path}", file=sys.stderr)
                environment = {**os.environ, "LENSD_URL": settings.base_url, "LENSD_KEY": key}
                return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - the caller's own
        except KeyboardInterrupt:
            return 130
