"""What `make ui` starts: both pages behind a gate, and the worker (`python -m flows.pages`)."""
