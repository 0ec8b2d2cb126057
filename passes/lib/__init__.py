"""What passes write with: nodes as function calls, regions and classes of graphs. No pass, and nothing that decides."""
