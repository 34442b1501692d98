"""One optimizer step: what was measured, what was done to the gradient, and what the optimizer used."""
