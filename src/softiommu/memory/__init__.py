"""The host's RAM, the program's RAM, and the accounting of pinned pages."""
