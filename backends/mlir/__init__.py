"""The target `mlir`: programs as MLIR by torch-mlir's importer, compiled and run by IREE."""
