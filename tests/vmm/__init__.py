"""A VMM's front ends, and what it may tell its guest."""
