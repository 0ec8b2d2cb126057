"""Training: what makes the memories of a converted model worth having."""
