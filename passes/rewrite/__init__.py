"""What the recipe asks for: bounded attention, and memories next to it, after it or in its place."""
