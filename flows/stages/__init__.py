"""What each stage does, in a file of its name, and what several stages share."""
