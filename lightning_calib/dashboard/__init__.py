"""The writing side of the "Gradients" tab: rows in, event records out."""
