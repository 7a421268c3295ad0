"""How good samples are, how straight a flow is, and how sure one can be of either."""
