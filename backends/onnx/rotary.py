"""Rotary positions, found where they are spelled out."""
