"""The particle transformer: its definition, its training, and the exported small float model."""
