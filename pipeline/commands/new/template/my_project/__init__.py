"""A model, its data, and nothing of how they are trained."""
