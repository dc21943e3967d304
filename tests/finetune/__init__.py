"""Fine-tuning through the real scripts."""
