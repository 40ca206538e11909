"""Deep sets: a permutation-invariant jet tagger on 32 particles, its training, and the exported float model."""
