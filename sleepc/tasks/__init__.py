"""What a model is asked in order to measure its memory: streams with something planted in them, and texts."""
