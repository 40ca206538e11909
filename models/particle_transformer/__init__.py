"""Particle transformer: attention between particles, biased by what pairs have in common; small and published size."""
