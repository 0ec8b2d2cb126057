"""A model becomes a Program."""
