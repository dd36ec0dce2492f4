"""What a user's own labels say about layers and poolings: `fit` and `sweep`."""
