"""A page on which to try models out: recommendations side by side, similar items, where cold items land."""
