"""HEPT: transformer of point clouds with locality-sensitive hashing; its data, its training, and the exported models."""
