"""Bytes that nobody wrote, for the reader of shards: `make fuzz`."""
