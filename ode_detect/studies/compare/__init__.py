"""Several configs, each with several seeds, compared: trained or taken, measured in one process, on one page.

- ``choice``: which networks are compared: roles of configs, and networks that their headers name.
- ``runs``: which run folder belongs to which config and seed, and whether it holds what the config asks for.
- ``measure``: what costs time and memory, the networks in turns.
- ``turned``: the same weights with smaller steps, and by another method.
- ``figures``: plots and pictures of all networks.
- ``compare``: from runs to results and page.
"""
