"""The hot-kernel bench: each hot operation of a contract beside torch and the chip's limits."""
