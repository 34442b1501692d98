"""From measurements to sentences."""
