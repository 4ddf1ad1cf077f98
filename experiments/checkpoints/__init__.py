"""Checkpoints of Hugging Face: looking at them, merging them, writing them."""
