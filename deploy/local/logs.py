"""Where the lines that the children print go."""

import os
import threading
from typing import IO, Protocol

_COLOURS = {"lensd": "1;37", "prepare": "35", "valkey": "33", "gateway": "36", "worker": "32"}
_NAME_WIDTH = 8
# Control characters out of a request's path or a model's name could otherwise rewrite the operator's terminal.
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code != ord("\t")}


class Log(Protocol):
    """Takes one line of one process; called from several threads."""

    def __call__(self, name: str, line: str) -> None: ...


class StreamLog:
    """Lines prefixed with the name of their process, in colour on a terminal (unless NO_COLOR is set)."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._coloured = stream.isatty() and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        prefix = f"{name:<{_NAME_WIDTH}} |"
        if self._coloured:
            prefix = f"\x1b[{_COLOURS.get(name, '0')}m{prefix}\x1b[0m"
        with self._lock:
            try:
                print(prefix, line.translate(_VISIBLE), file=self._stream, flush=True)
            except OSError:
                # The reader has gone (`make up | head`). The children's pipes must be emptied all the same.
                return
