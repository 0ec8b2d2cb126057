"""What a sleep keeps of the pairs that leave a window: a contract for scores, one file for each, and the choice."""
