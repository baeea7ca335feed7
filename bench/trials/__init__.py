"""The tests A to H, Q and S: a file per kind, all of them in `catalogue.py`."""
