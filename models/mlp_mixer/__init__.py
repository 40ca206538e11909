"""MLP-mixer: a jet tagger that mixes features and particles in turn, its training, and the exported float model."""
