"""Memory rules as ONNX, one family a file: each adds to `spelling.SPELLINGS`."""
