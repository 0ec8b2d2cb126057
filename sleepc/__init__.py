"""sleepc converts language models to bounded memory and sleep."""
