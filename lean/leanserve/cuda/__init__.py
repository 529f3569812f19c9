"""The `cuda` runner: a pack's kernels on its own buffers, in CUDA graphs. No torch, no compiler."""
