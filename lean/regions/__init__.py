"""Where a decode step spends its time: a supplementary pass over a bench profile, kept as a record."""
