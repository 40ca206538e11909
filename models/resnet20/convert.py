"""Write MNIST's or CIFAR's own files as a data folder: `python -m pqc.models.resnet20.convert KIND FILES --out FOLDER`.

MNIST: the four IDX files of 28x28 pixels, gzipped or not; two rows and columns of zeros on every side make them 32x32,
so that the pool at the end averages a power of two. CIFAR-10 and CIFAR-100: the binary version; of the latter, the fine
labels. Files with `test` or `t10k` in their name are to test with, the others to train with. Pixels become p / 256 in
float16, which is exact.
"""

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import click
import numpy as np

from pqc import files
from pqc.errors import DataError, PqcError

Images = tuple[np.ndarray, np.ndarray]
"""Pixels as uint8 (N, channels, 32, 32) and classes as uint8 (N,)."""

MOST_BYTES = 2**31
"""No file of these sets has as much."""
MOST_EXPANSION = 1032
"""How many bytes a byte of deflate can stand for."""
IMAGES, LABELS = b"\0\0\x08\x03", b"\0\0\x08\x01"
"""The first four bytes of an IDX file of uint8 with three axes, or with one."""
PIXELS, BORDER = 28, 2
CHANNELS, SIDE = 3, 32


@dataclass(frozen=True)
class Rows:
    """CIFAR's rows: labels, then three planes of 32x32 pixels.

    Args:
        labels: bytes of labels in a row; the last one is the class.
        classes: how many there are.
    """

    labels: int
    classes: int

    def read(self, paths: Sequence[Path]) -> Images:
        """The images of all of `paths`, in their order."""
        tables = [self._table(path) for path in paths]
        table = np.concatenate(tables)
        return table[:, self.labels :].reshape(-1, CHANNELS, SIDE, SIDE), table[:, self.labels - 1]

    def _table(self, path: Path) -> np.ndarray:
        width = self.labels + CHANNELS * SIDE * SIDE
        size = path.stat().st_size
        if not size or size % width or size > MOST_BYTES:
            raise _broken(path, f"{size} bytes are not whole rows of {width}")
        table = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, width)
        highest = table[:, self.labels - 1].max()
        if highest >= self.classes:
            raise _broken(path, f"it has the class {highest}, and there are {self.classes}")
        return table


def read_mnist(paths: Sequence[Path]) -> Images:
    """The images and classes of one file of each."""
    arrays = {array.ndim: array for array in map(read_idx, paths)}
    if len(paths) != 2 or arrays.keys() != {1, 3}:
        names = ", ".join(path.name for path in paths)
        raise DataError("one file of images and one of labels are needed", at=names, hint="give all four files")
    images, classes = arrays[3], arrays[1]
    if images.shape != (len(classes), PIXELS, PIXELS) or classes.max(initial=0) > 9:
        raise DataError(
            f"images of the shape {images.shape} do not go with {len(classes)} labels of ten classes",
            at=str(paths[0]),
            hint="give the files of one set",
        )
    return np.pad(images, [(0, 0), (BORDER, BORDER), (BORDER, BORDER)])[:, None], classes


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of uint8 with one or three axes; its size is checked before it is read.

    Raises:
        DataError: it is another file, or holds more or less than its header says.
    """
    zipped = path.suffix == ".gz"
    most = path.stat().st_size * (MOST_EXPANSION if zipped else 1)
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            shape = _shape(file, path)
            size = math.prod(shape)
            if size > most:
                raise _broken(path, f"its header says {shape}, more than a file of this size holds")
            content = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken(path, f"it cannot be unpacked: {error}") from error
    if len(content) != size:
        raise _broken(
            path, f"its header says {shape}, but there are {'more' if len(content) > size else 'fewer'} bytes"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(file: gzip.GzipFile | BufferedReader, path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if magic not in (IMAGES, LABELS):
        raise _broken(path, f"it begins with {magic.hex(' ') or 'nothing'}, not as IDX images or labels do")
    sizes = file.read(4 * magic[3])
    if len(sizes) != 4 * magic[3]:
        raise _broken(path, "it ends within its header")
    return tuple(int.from_bytes(sizes[place : place + 4], "big") for place in range(0, len(sizes), 4))


def _broken(path: Path, message: str) -> DataError:
    return DataError(message, at=str(path), hint="is the file complete, and of this set?")


READERS: dict[str, Callable[[Sequence[Path]], Images]] = {
    "mnist": read_mnist,
    "cifar10": Rows(labels=1, classes=10).read,
    "cifar100": Rows(labels=2, classes=100).read,
}


def convert(kind: str, paths: Sequence[Path], out: Path) -> dict[str, int]:
    """Write the folder, and return how many images its two parts have.

    Args:
        kind: of `READERS`.
        paths: the files of both parts.
        out: the folder: `train/x.npy` and `y.npy`, `test/x.npy` and `y.npy`.

    Raises:
        DataError: a part has no file, or a file is broken.
    """
    tests = [path for path in paths if "test" in path.name or "t10k" in path.name]
    parts = {"train": sorted(set(paths) - set(tests)), "test": sorted(tests)}
    for name, chosen in parts.items():
        if not chosen:
            raise DataError(f"no file for the part '{name}'", at=str(out), hint="give the files of both parts")
    found = {name: READERS[kind](chosen) for name, chosen in parts.items()}
    for name, (pixels, classes) in found.items():
        files.write_array(out / name / "x.npy", pixels.astype(np.float16) / np.float16(256))
        files.write_array(out / name / "y.npy", classes)
    return {name: len(classes) for name, (_, classes) in found.items()}


@click.command()
@click.argument("kind", type=click.Choice(list(READERS)))
@click.argument("paths", metavar="FILES", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(kind: str, paths: tuple[Path, ...], out: Path) -> None:
    """Write the data folder of --out from the FILES of MNIST or CIFAR that you have."""
    try:
        counts = convert(kind, paths, out)
    except PqcError as error:
        raise click.ClickException(str(error)) from error
    for name, count in counts.items():
        click.echo(f"{name}: {count} images")


if __name__ == "__main__":
    main()
