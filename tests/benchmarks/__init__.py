"""The measuring programs, run small: that they run, never how fast."""
