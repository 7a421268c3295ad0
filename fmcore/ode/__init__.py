"""How a field is integrated: solvers, sampling, the pairs it induces, likelihoods."""
