"""The operators: contract, fake kernel, autograd, naive reference; the registry of memory rules."""
