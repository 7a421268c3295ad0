"""Who is told of what a stage does: the journal, MLflow, Prefect."""
