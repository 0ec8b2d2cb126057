"""Checkpoints of transformers' own classes: what other runtimes load."""
