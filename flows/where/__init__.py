"""Where a thing comes from: data, code, parameters, stage, file, runs in MLflow and Prefect, version."""
