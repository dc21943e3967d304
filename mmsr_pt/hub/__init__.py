"""The Hugging Face hub: a model found there, and a model, a catalogue or a Space published."""
