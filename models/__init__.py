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


JET_CLASSES = ("gluon", "light quark", "W", "Z", "top")

TABLE = {
    model.name: model
    for model in (
        ReferenceModel(
            name="jet_tagger",
            description="Five classes of jets from 16 observables: a dense network 16-64-32-32-5",
            file="jet_tagger/jet_tagger.onnx",
            data="jet_tagger/data",
            schedule="cs-demo",
            classes=JET_CLASSES,
        ),
        ReferenceModel(
            name="deep_sets",
            description="Five classes of jets from 32 particles in any order: dense per particle, mean, dense",
            file="deep_sets/deep_sets.onnx",
            data="jet_constituents/data",
            schedule="deep-sets",
            classes=JET_CLASSES,
        ),
        ReferenceModel(
            name="mlp_mixer",
            description="Five classes of jets from 32 particles: dense over particles and over features in turn",
            file="mlp_mixer/mlp_mixer.onnx",
            data="jet_constituents/data",
            schedule="mlp-mixer",
            classes=JET_CLASSES,
        ),
        ReferenceModel(
            name="particle_transformer",
            description="Five classes of jets from 32 particles: attention with features of pairs, 10,927 parameters",
            file="particle_transformer/particle_transformer.onnx",
            data="jet_constituents/data",
            schedule="particle-transformer",
            classes=JET_CLASSES,
        ),
        ReferenceModel(
            name="resnet20",
            description="Ten digits in images of 8x8 pixels: ResNet-20, a quarter as wide as published",
            file="resnet20/resnet20.onnx",
            data="resnet20/data",
            schedule="resnet20",
            classes=tuple("0123456789"),
        ),
        ReferenceModel(
            name="autoencoder",
            description="Anomalies among jets by the error of their reconstruction: dense, 16-32-16-3-16-32-16",
            file="autoencoder/autoencoder.onnx",
            data="jet_tagger/data",
            schedule="autoencoder",
        ),
        ReferenceModel(
            name="smart_pixels",
            description="Place and angles of a track, with their covariance, from one cluster of pixels: a small CNN",
            file="smart_pixels/smart_pixels.onnx",
            data="smart_pixels/data",
            schedule="smart-pixels",
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
