"""The `cuda` runner: a pack's kernels on buffers of its own, recorded in CUDA graphs. No torch, no compiler."""
