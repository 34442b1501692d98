"""Steps whose gradient is not finite: where they come from, what is kept, how they are dropped or run again."""
