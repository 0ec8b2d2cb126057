"""The kinds of conditions that masks are made of, one a file: its KIND."""
