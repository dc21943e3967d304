"""Full-catalogue ranking, its metrics and its slices (layer 2)."""
