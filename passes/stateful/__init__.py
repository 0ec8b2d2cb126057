"""Everything becomes a step from state to state: the loop of a recurrent sleep, the clock, the sleep graphs."""
