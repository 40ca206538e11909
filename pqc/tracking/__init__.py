"""Runs in an experiment tracker: what is sent, and when."""
