"""Where compiled kernels run: the GPU, one launch on it, one case tried, and time."""
