"""Autoencoder: a network that learns what ordinary jets look like, its training, and the exported float model."""
