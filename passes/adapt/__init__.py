"""Programs that are complete, with other weights or another dtype."""
