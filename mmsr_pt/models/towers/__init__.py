"""Item towers: what turns titles and pictures into tokens, and where each is cut into a frozen and a trained part."""
