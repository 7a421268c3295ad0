"""What a run would cost, before it starts: `python -m flows.preview`."""
