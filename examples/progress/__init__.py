"""Progress: a channel per job."""
