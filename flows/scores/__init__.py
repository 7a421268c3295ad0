"""What evaluation measures: the runs of the table, and what a model is looked at through."""
