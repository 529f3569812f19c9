"""What is not there yet, computed from the tree: contracts, kernels, tuning files and kept records."""
