"""The checkout's disk: what takes room on it, and whether what lies there is what was written."""
