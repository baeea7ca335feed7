"""What measures a running service."""
