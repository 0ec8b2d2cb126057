"""The flat graph becomes embed, block classes and head."""
