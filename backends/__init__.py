"""Graph to executable: one folder a backend, and the table of their names."""
