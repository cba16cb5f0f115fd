"""Tables, plots and pictures of results. Knows numbers and pixels, not networks.

- ``results``, ``rows``, ``protocol``: the one shape of all numbers that are claimed, read, written and merged.
- ``metrics``: how quantities are called and shown; ``tables``: results as tables; ``readme``: those of Markdown files.
- ``comparison``, ``page``: several networks compared, on a page.
- ``plots``, ``ratios``, ``dial``, ``overlays``, ``confusion``: plots.
- ``canvas``, ``examples``: pictures.
"""
