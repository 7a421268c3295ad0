"""What stages work with: their entry in dvc.yaml, unfinished work, the device."""
