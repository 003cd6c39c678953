"""Nesting in software: the shadow of a child's tables over its parent's."""
