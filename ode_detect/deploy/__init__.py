"""A trained network in use: predictions, conversion of checkpoints, export."""
