"""Where calibrated gradients help and where they do not: runs, statistics and docs/evidence.md (`make study`)."""
