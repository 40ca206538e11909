"""Every expansion of a search in a file of its own: an interrupted search reads them and goes on with the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pqc import data, files, interrupts
from pqc.errors import TrainingError
from pqc.fit.nodes import Neighbourhood, Node

MAX_HEADER_BYTES = 1_000_000
HEADER = "search.json"
EMPTY = np.zeros(0, np.uint8)
"""Stands for a digest that is missing."""


class Journal:
    """Expands nodes, from files where they are.

    Args:
        neighbourhood: expands nodes that no file has.
        folder: where the files are.
        fingerprint: of all that determines the search.
        resume: read what is there; otherwise it is removed.
        listener: told after each expansion how many there were, and what was expanded.

    Raises:
        TrainingError: the files belong to another search.
    """

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        folder: Path,
        fingerprint: str,
        *,
        resume: bool = False,
        listener: Callable[[int, Node], None] | None = None,
    ) -> None:
        self._neighbourhood, self._folder, self._listener = neighbourhood, folder, listener
        self.expanded = 0
        if resume and (folder / HEADER).exists():
            self._check(fingerprint)
            return
        for path in folder.glob("*.npz"):
            path.unlink()
        files.write_text(folder / HEADER, json.dumps({"fingerprint": fingerprint}))

    def expand(self, node: Node) -> list[Node]:
        """The neighbours of a node.

        Raises:
            TrainingError: the file of this expansion is damaged.
        """
        interrupts.check()
        path = self._folder / f"{self.expanded:06}.npz"
        if path.exists():
            found = self._read(path, node)
        else:
            found = self._neighbourhood.expand(node)
            files.write_arrays(path, self._arrays(node, found))
        self.expanded += 1
        if self._listener is not None:
            self._listener(self.expanded, node)
        return found

    def _arrays(self, node: Node, found: list[Node]) -> dict[str, np.ndarray]:
        numbers = np.array([[one.value, one.length, one.rank] for one in found]).reshape(-1, 3)
        masks = np.array([np.packbits(one.mask) for one in found if one.mask is not node.mask], np.uint8)
        arrays = {"key": np.array([*node.levels, node.share]), "numbers": numbers, "masks": masks}
        return {**arrays, "digest": _digest(arrays)}

    def _read(self, path: Path, node: Node) -> list[Node]:
        arrays = data.read(path)
        digest = arrays.pop("digest", EMPTY)
        steps = list(self._neighbourhood.steps(node))
        whole = arrays.keys() == {"key", "numbers", "masks"} and np.array_equal(digest, _digest(arrays))
        if not whole or arrays["key"].tolist() != [*node.levels, node.share] or len(arrays["numbers"]) != len(steps):
            raise TrainingError("the journal is damaged", at=str(path), hint="run without --resume")
        found = []
        for step, (value, length, rank) in zip(steps, arrays["numbers"].tolist(), strict=True):
            one = self._neighbourhood.moved(node, step, np.zeros(len(node.mask)))
            if one.mask is not node.mask:
                bits = np.unpackbits(arrays["masks"][0], count=len(node.mask))
                one = replace(one, mask=bits.astype(bool))
            found.append(replace(one, value=value, length=length, rank=rank))
        return found

    def _check(self, fingerprint: str) -> None:
        path = self._folder / HEADER
        try:
            known = files.read_json(path, MAX_HEADER_BYTES)["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError("the journal is damaged", at=str(path), hint="run without --resume") from error
        if known != fingerprint:
            raise TrainingError(
                "the journal belongs to another search, schedule, model or data",
                at=str(path),
                hint="run without --resume, or with what the search was started with",
            )


def _digest(arrays: dict[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode() + arrays[name].tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
