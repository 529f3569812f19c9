"""The final RMSNorm, the language model head, and the greedy choice."""
