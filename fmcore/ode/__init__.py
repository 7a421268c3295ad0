"""How a field is followed: solvers, the pairs it induces, likelihoods, and fields known exactly."""
