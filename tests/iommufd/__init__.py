"""Tests of the manager, one file for each of its modules."""
