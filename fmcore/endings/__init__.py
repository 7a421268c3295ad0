"""How students are trained, a file each, and which steps they may take."""
