"""Config keys, tasks, the one trainer, checkpoints."""
