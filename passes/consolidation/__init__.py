"""What a sleep does with the window that it ends, as files: a contract, and one file for each consolidation."""
