"""Networks, their hidden activations, and the folders that models are saved in."""
