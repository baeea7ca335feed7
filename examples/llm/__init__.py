"""LLM: a channel per answer."""
