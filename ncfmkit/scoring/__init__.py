"""How good a set is: students and baselines."""
