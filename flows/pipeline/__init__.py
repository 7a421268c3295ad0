"""The pipeline run as a whole: DVC's graph in the checkout or as an experiment, shown in Prefect."""
