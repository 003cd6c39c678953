"""Which hardware there is, wired together."""
