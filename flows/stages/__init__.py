"""What each stage does, a file each, named as in dvc.yaml."""
