"""Tables, plots and pictures of results. Knows numbers and pixels, not networks.

- ``results``: the one shape of all numbers that are claimed, read, written, merged and laid out as tables.
- ``readme``: the tables of a Markdown file, filled from those numbers.
- ``plots``: curves of a training run.
- ``pictures``: pictures with boxes.
"""
