"""Networks, the folders they are saved in, and models that other libraries trained."""
