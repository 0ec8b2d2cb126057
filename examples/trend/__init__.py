"""What the examples of the paper's trend share (docs/paper.md)."""
