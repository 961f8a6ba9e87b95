"""Starts a program that the kernel kills when the process that started it ends, however that ended.

Linux only; elsewhere the program is started as it is. `PR_SET_PDEATHSIG` survives `execve`, so this file, run as a
script, sets it for itself and then becomes the program. (`preexec_fn` would run Python between fork and exec of a
process with threads, which can deadlock.) It covers the program alone, not what the program starts in its turn.

The kernel takes the *thread* that started the program for its parent: start it from a thread that lives as long.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1


def dies_with_parent(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` and has it killed when the calling process ends."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def main(parent_pid: int, argv: list[str]) -> None:
    """Becomes `argv`, to be killed when `parent_pid` ends; exits at once when it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit(1)
    os.execvp(argv[0], argv)  # noqa: S606 - becoming the program is what this file is for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
