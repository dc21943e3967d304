"""One page about a run: what it was, how it went, what it found and what it recommends (layer 3)."""
