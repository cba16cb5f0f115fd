"""Several configs, each with several seeds, compared: trained or taken, measured in one process, on one page.

- ``runs``: which run folder belongs to which config and seed, and whether it holds what the config asks for.
- ``measure``: what costs time and memory, the networks in turns.
- ``pictures``: plots and pictures of all networks.
- ``compare``: from runs to results and page.
"""
