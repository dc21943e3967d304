"""Towers, fusion, sequence encoders and the recommender made of them (layer 1)."""
