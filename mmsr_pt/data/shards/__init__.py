"""Raw datasets in, domain directories out: `build` is the way in."""
