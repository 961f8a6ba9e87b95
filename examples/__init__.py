"""Studies that use lensd as anyone would: over HTTP, with a key."""
