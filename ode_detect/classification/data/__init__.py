"""Data sets of labelled pictures, and examples made of them."""
