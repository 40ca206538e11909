"""pqc: a compiler that prunes and quantizes ONNX networks and hands them to FPGAs bit for bit."""

from pathlib import Path

# A bare checkout keeps `passes`, `schedules` and `models` beside this folder; an installed package has them inside.
if (_root := Path(__file__).resolve().parent.parent).joinpath("pyproject.toml").is_file():
    __path__ = [*__path__, str(_root)]

__version__ = "0.1.0"
