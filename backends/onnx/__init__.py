"""The ONNX backend: a program as graphs that ONNX Runtime runs without PyTorch."""
