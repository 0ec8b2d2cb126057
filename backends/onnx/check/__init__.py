"""Is what was exported what was asked for: the files' weights by value, and what ONNX Runtime computes with them."""
