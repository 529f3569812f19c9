"""RMSNorm, the fused gate and up projection, and the SwiGLU product."""
