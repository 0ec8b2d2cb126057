"""GGUF files of what llama.cpp's architecture `qwen35` runs."""
