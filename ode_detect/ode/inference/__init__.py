"""A trained network made ready for inference or export."""
