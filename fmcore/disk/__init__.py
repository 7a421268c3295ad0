"""What lies on disk: files, checkpoints, pairs, data sets."""
