"""Weights in few bits by what a text makes of them: which numbers (gptq), and how many bits where (fit)."""
