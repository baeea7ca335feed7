"""A stock ticker with conflation."""
