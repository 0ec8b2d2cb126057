"""Which version of sleepc this is."""

__version__ = "0.1.0"
