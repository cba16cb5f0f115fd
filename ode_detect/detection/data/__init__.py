"""Data sets of boxes and masks: read, checked, repaired, and examples made of them."""
