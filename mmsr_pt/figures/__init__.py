"""The paper's figures, drawn from runs and models (layer 3)."""
