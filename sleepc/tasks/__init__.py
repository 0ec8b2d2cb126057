"""What a model is asked to measure its memory: streams with something planted in them, and texts."""
