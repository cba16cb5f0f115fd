"""Ways to a gradient: evaluating again, the binomial schedule, reversible steps."""
