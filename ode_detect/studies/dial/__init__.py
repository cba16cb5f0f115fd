"""The dial of a trained network: quality and cost by steps and methods."""
