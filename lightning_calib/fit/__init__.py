"""One fit: which callbacks take part, when a row is due, what kind of run it is. Knows Lightning."""
