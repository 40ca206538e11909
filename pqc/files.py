"""Write files so that a reader sees the old one or the new one, never half of either; read them within bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pqc.errors import PqcError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed onto it when the block ends well.

    Raises:
        PqcError: the folder is missing or read-only, or the disk is full; `path` is as it was.
    """
    # A name that is known before the file is made: an interrupt between the two leaves nothing behind.
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        reason = no_file(path)
        if reason is not None and path.exists():
            raise PqcError(f"cannot write the file: {reason}", at=str(path), hint="give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path, most: int) -> Any:
    """What a JSON file of at most `most` bytes holds.

    Raises:
        ValueError: it is larger, no JSON, or nested too deep.
        OSError: it cannot be read.
    """
    if path.stat().st_size > most:
        raise ValueError("it is too large")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` in one step, as UTF-8."""
    write_bytes(path, content.encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file to `path` in one step."""
    named: dict[str, Any] = dict(arrays)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **named)


def write_compressed(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed .npz file to `path` in one step."""
    named: dict[str, Any] = dict(arrays)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **named)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file to `path` in one step."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def no_file(path: Path) -> str | None:
    """Why what is at `path` is no file, or None; a device or a pipe might be read for ever."""
    if path.is_file():
        return None
    if path.is_dir():
        return "it is a folder"
    if path.exists():
        return "it is a device or a pipe"
    return "it is a link that leads nowhere" if path.is_symlink() else None


def cannot_write(path: Path, error: OSError) -> PqcError:
    """The error to raise when `path` could not be written."""
    reason = error.strerror or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        obstacle = next(one for one in path.parents if one.exists() or one.is_symlink())
        reason = f"'{obstacle}' is not a folder"
    return PqcError(
        f"cannot write the file: {reason}",
        at=str(path),
        hint="check the folder's permissions and the free space",
    )
