"""What the toolkit's speed is, measured on this machine against what it replaces: see benchmarks/README.md."""
