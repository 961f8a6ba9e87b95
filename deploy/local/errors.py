"""The launcher's own error."""


class LaunchError(Exception):
    """The stack cannot run; the message is one line that says why and what to do."""
