"""Chat: a channel per room."""
