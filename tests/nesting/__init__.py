"""Guests whose tables lie under the host's, from end to end."""
