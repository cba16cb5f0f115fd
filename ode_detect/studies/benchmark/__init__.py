"""What the continuous core costs, each side beside what it is compared with.

- ``measure``: the sides of a case in turn, their times, their ratios.
- ``memory``: peak memory as the operating system sees it.
- ``stages``: the blocks and states that are measured.
- ``conversion``, ``flow``, ``gradients``, ``detector``, ``export``, ``threads``: the sections; each yields cases and
  knows no time.
- ``run``: sections to results and plots.
"""
