"""The guard: whether a run may start, what it sets aside, and when it must end."""
