"""The one-command stack: Valkey, a worker and the gateway as children of one process.

`__main__` parses the command line; `stack` is the composition root; `supervisor` keeps the children running.
"""
