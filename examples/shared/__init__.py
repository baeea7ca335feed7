"""What all examples share: how one is started, and how it looks."""
