"""ATEN to a flat graph with attention, masks and positions in one spelling."""
