"""Domains on disk: building them, reading them, streaming them (layer 1)."""
