"""Sampling on the device: temperature, top-k, top-p, and a draw."""
