"""A search for networks."""
