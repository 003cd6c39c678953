"""Tests of the program's memory, one file for each module."""
