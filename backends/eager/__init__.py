"""The eager backend: graphs run by PyTorch, differentiably; the oracle of the others."""
