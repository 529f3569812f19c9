"""leanpack/v1, the sealed artifact: a directory built once, named by its root hash.

docs/leanpack.md has the format. `open_pack` is what everything that serves or measures calls. Importing this
package loads neither torch nor kernels.
"""

from lean.leanpack.manifest import Manifest, TensorRecord, source_matches
from lean.leanpack.read import Pack, open_pack, read_manifest

__all__ = ["Manifest", "Pack", "TensorRecord", "open_pack", "read_manifest", "source_matches"]
