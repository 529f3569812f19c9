"""Encoded weights as bf16 again: what a prompt's products read."""
