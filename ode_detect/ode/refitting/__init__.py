"""Another number of pieces for a trained flow: splitting, projection, distillation."""
