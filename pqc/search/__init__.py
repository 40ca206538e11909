"""Search over schedules: the space, the study, and what a trial is."""
