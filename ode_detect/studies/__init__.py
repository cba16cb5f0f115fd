"""What is measured of trained networks: comparisons, benchmarks, the dial, pieces, certificates."""
