"""Which channels a graph needs, and which could go without a change of what it computes."""
