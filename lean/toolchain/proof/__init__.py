"""Compile the appliance's kernels, run them on a GPU against FP64, and keep the record."""
