"""Hugging Face: loading, tokenizers, GGUF, chat templates."""
