"""What the recipe asks for: bounded attention, and memories beside it, after it or in its place."""
