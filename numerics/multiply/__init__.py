"""Algorithms that take the place of multiplication."""
