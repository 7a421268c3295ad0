"""What is trained and how: paths, couplings, times, losses, fields, the one training loop."""
