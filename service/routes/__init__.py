"""The HTTP edge: one file for each concern."""
