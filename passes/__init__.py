"""Graph to graph: every pass of the compiler, one a file; pipeline.py is the page to read first."""
