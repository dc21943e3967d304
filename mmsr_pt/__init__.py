"""mmsr_pt: pre-train multimodal sequential recommenders at scale and transfer them to new domains."""

__version__ = "0.1.0"
