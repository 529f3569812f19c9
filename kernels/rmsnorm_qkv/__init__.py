"""RMSNorm and the fused query, key and value projection."""
