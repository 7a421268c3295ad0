"""The models there are to deploy: registered with their scores, cards and lineage, and loaded by name."""

from pathlib import Path

SERVED = Path(__file__).parent / "served.py"  # read, never imported here: MLflow runs a copy of it
MODEL = "model"  # the model folder within what is registered
