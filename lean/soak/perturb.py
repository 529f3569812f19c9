from pathlib import Path


def perturbed_pack(pack: Path, out: Path, *, share: float, seed: int) -> Path:
    """A placeholder."""
    raise NotImplementedError
