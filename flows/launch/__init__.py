"""How a stage becomes a process: `python -m flows.launch` is the command of every stage in dvc.yaml."""
