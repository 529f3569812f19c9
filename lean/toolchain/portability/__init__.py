"""Every kernel compiled for many chips from the same source."""
