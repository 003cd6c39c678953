"""Supervision, on machines of doubles and on clients that are programs of their own."""
