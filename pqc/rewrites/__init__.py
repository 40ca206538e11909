"""Operators in forms that have a right gradient: what the pass legalize does to each, by theme."""
