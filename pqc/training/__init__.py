"""Training: the step, the epochs, the phases, the checkpoints."""
