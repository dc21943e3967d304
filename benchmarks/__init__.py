"""Measures what the toolkit claims to be fast at."""
