"""Kernels compiled on one machine for a pack that is built on another, which needs no compiler then.

A folder of kernels is `kernels.json` and the files of its targets, in the names they will have in the pack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lean.contracts import Contract, contract_sha256, from_data, to_data
from lean.errors import ContractError, PackError, UsageError
from lean.files.safe_path import json_object, read_small
from lean.files.staging import publish, staged_directory, write_file
from lean.leanpack.compile import CompiledTarget, Compiler
from lean.leanpack.kernel_record import TargetRecord, target_problems
from lean.leanpack.lock import FileRecord

KERNELS_NAME = "kernels.json"
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFolder:
    """`kernels.json`: for which contract, which targets, by which tools, and every file's hash."""

    SCHEMA: ClassVar[str] = "kernels/v1"

    contract_sha256: str
    targets: tuple[TargetRecord, ...]
    toolchain: dict[str, str]
    files: tuple[FileRecord, ...]


def write_kernels(contract: Contract, targets: tuple[str, ...], out: Path) -> KernelFolder:
    """Compile a contract's kernels into the new folder `out`.

    Errors: those of `Compiler`; `UsageError` where `out` exists.
    """
    if out.exists():
        raise UsageError(f"{out}: exists; name a new folder")
    compiler = Compiler()
    for chip in targets:
        compiler.check(contract, chip)
    compiled = [compiler.compile(contract, chip) for chip in targets]
    folder = KernelFolder(
        contract_sha256=contract_sha256(contract),
        targets=tuple(target.record for target in compiled),
        toolchain=compiler.versions,
        files=tuple(file for target in compiled for file in target.files),
    )
    with staged_directory(out.with_name(f".{out.name}.staging")) as staging:
        for target in compiled:
            for name, data in target.contents.items():
                write_file(staging, name, data)
        text = json.dumps(to_data(folder), indent=1, sort_keys=True) + "\n"
        write_file(staging, KERNELS_NAME, text.encode())
        publish(staging, out)
    return folder


class Prebuilt:
    """Stands where a `Compiler` does. Errors of making one: `PackError` naming the file and the field."""

    def __init__(self, root: Path) -> None:
        path = root / KERNELS_NAME
        try:
            document = json_object(read_small(root, KERNELS_NAME, _MAX_BYTES), str(path))
            self._folder = from_data(KernelFolder, document, str(path))
        except ContractError as error:
            raise PackError(str(error)) from None
        self._root = root
        self._files = {file.path: file for file in self._folder.files}

    def check(self, contract: Contract, target: str) -> None:
        """Whether the folder has this contract's kernels for the chip. Errors: `PackError`, `UsageError`."""
        path = self._root / KERNELS_NAME
        if self._folder.contract_sha256 != contract_sha256(contract):
            raise PackError(f"{path}: the kernels are for another contract than {contract.id}")
        if target not in self._targets:
            raise UsageError(f"target: {path} has no kernels for {target}; it has {', '.join(self._targets)}")
        for problem in target_problems(self._folder.targets, contract.encoding):
            raise PackError(f"{path}: {problem}")

    @property
    def versions(self) -> dict[str, str]:
        """The tools that compiled them, by name."""
        return dict(self._folder.toolchain)

    def compile(self, contract: Contract, target: str) -> CompiledTarget:
        """The target's kernels as they lie, each file by its hash. Errors: `PackError` naming a bad file."""
        record = self._targets[target]
        names = [name for kernel in record.kernels for name in (kernel.tilebc, kernel.cubin, kernel.sass)]
        compiled = CompiledTarget(record=record, contents={name: self._read(name) for name in names})
        for file in compiled.files:
            if file != self._files.get(file.path):
                raise PackError(f"{self._root / file.path}: not what {KERNELS_NAME} says; copy it again")
        return compiled

    @property
    def _targets(self) -> Mapping[str, TargetRecord]:
        return {target.name: target for target in self._folder.targets}

    def _read(self, name: str) -> bytes:
        return read_small(self._root, name, _MAX_BYTES)
