"""Schedules shipped as data: one per method, and one per reference model."""
