"""How foreign data is read."""
