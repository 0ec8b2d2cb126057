"""How a program should run on a device: what may be chosen, measured, and kept as a record."""
