"""Root mean square normalisation, the first half of three fused operations."""
