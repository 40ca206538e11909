"""HEPT: a transformer of point clouds with locality-sensitive hashing; its data and the exported models."""
