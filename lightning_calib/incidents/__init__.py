"""Steps whose gradient is not finite: where they come from, what is kept of them, how they are dropped."""
