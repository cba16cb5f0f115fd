"""What the continuous core costs, each side together with what it is compared with.

- ``stages``: the blocks and states that are measured.
- ``conversion``, ``flow``, ``gradients``, ``detector``, ``export``, ``threads``: the sections; each yields cases and
  knows no time.
- ``run``: sections to results and plots.
"""
