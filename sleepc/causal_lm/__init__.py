"""A converted program as a causal language model of transformers, for the tools that know such models."""
