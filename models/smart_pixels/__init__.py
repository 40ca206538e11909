"""Smart Pixels: the generator of charge clusters, the network's training, and the exported float model."""
