"""Invariants measured on an artifact, and faults that they must catch."""
