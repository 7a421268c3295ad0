"""This machine, this user and this checkout: what all rooms that meet git, DVC, MLflow or Prefect need to know.

Processes, the login, the servers that may be asked; the commit, DVC's lock, cache and charts, MLflow's database.
"""
