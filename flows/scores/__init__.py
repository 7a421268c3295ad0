"""What evaluation measures: scores over solvers, grids and NFE, and probes of each model's finest run."""
