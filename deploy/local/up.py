"""`python -m deploy.local up`: the stack in the foreground, until Ctrl-C."""

import sys
import time
from threading import Event

from deploy.local.logs import StreamLog
from deploy.local.settings import LocalSettings
from deploy.local.signals import ended_by_signals
from deploy.local.stack import Stack


def run(settings: LocalSettings) -> int:
    """Runs the stack until it is asked to end; the exit code. Raises LaunchError when it cannot run."""
    log = StreamLog(sys.stdout)
    began = time.monotonic()
    try:
        with ended_by_signals(), Stack(settings, log):
            log("lensd", f"ready in {time.monotonic() - began:.1f} s: {settings.base_url}")
            log("lensd", f"the interactive API page: {settings.base_url}/docs")
            log("lensd", "Ctrl-C ends it")
            try:
                Event().wait()
            finally:
                log("lensd", "ending; Ctrl-C again ends it at once")
    except KeyboardInterrupt:
        log("lensd", "ended")
    return 0
