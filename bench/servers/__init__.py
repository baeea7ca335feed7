"""The servers that are measured: an adapter per file, all of them in `roster.py`."""
