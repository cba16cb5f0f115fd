"""How many pieces the flows of a network need: projected on fewer, or grown by splitting."""
