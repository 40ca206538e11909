"""Jet tagger: the generator of its data, its training, and the exported float model."""
