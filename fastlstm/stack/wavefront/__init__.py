"""All layers of one direction as one op on a GPU, where they run concurrently."""
