"""Reference models: small .onnx files, what made them, and their data; `TABLE` is the explicit list."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path


@dataclass(frozen=True)
class ReferenceModel:
    """A model that brings its own data.

    Args:
        name: as the command line takes it.
        description: one line.
        file: the ONNX file's path within this package; likewise `data`, the data folder.
        schedule: the shipped schedule that suits it.
        classes: names of the classes, in order.
    """

    name: str
    description: str
    file: str
    data: str
    schedule: str
    classes: tuple[str, ...] = ()

    def path(self) -> Path:
        """The ONNX file."""
        return Path(str(resources.files("pqc.models") / self.file))

    def data_path(self) -> Path:
        """The data folder."""
        return Path(str(resources.files("pqc.models") / self.data))


TABLE = {
    model.name: model
    for model in (
        ReferenceModel(
            name="jet_tagger",
            description="Five classes of jets from 16 observables: a dense network 16-64-32-32-5",
            file="jet_tagger/jet_tagger.onnx",
            data="jet_tagger/data",
            schedule="cs-demo",
            classes=("gluon", "light quark", "W", "Z", "top"),
        ),
        ReferenceModel(
            name="hept_tracking",
            description="Embeddings of detector hits: the transformer HEPT with hashing, 256 hits, 5,422 parameters",
            file="hept/tracking.onnx",
            data="hept/data/tracking",
            schedule="hept-tracking",
        ),
        ReferenceModel(
            name="hept_pileup",
            description="Neutral particles of the hard collision among pile-up: HEPT, 256 particles, 5,265 parameters",
            file="hept/pileup.onnx",
            data="hept/data/pileup",
            schedule="hept-pileup",
        ),
    )
}
