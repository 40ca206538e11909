"""Fixed masks from a file: the pass `apply-masks`, and types that calibration keeps as written."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import content, initializers, make_mlp, onnx_model
from test_passes import DENSE, W, short

from pqc import fixed_masks, masking, pipeline
from pqc.errors import DataError, PassError, UnsupportedError

MASK = np.array([[True, False], [True, True]])


def passes(path: Path, before: str = "") -> str:
    return f"{before},apply-masks{{file={path}}}".removeprefix(",")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A mask of the weight of `DENSE`."""
    path = tmp_path / "masks.npz"
    fixed_masks.write(path, {"fc.weight": MASK})
    return path


def test_apply_masks(file: Path) -> None:
    model = onnx_model(DENSE, fc__weight=W)
    pipeline.run(model, passes(file, "insert-quant{weights=1,1,6 inputs=none}"))
    assert short(model).splitlines()[1:] == [
        "fc.weight.left = Mul (fc.weight, fc.weight.fixed.mask)",
        "fc.weight.quantized = Quant<1,1,6> (fc.weight.left)",
        "y = MatMul (x, fc.weight.quantized)",
    ]
    arrays = initializers(model)
    np.testing.assert_array_equal(arrays["fc.weight.fixed.mask"], MASK.astype(np.float32))
    np.testing.assert_array_equal(arrays["fc.weight"], np.float32(W))
    assert str(file.parent) not in str(model.metadata_props)


def test_apply_masks_goes_before_what_a_method_learns(file: Path) -> None:
    model = onnx_model(DENSE, fc__weight=W)
    pipeline.run(model, passes(file, "insert-masks{method=magnitude options=when=end,sparsity=0.5}"))
    (site,) = masking.masks(model.graph)
    assert site.weight.name == "fc.weight"
    assert site.masked.name == "fc.weight.left"
    pipeline.run(model, "freeze-masks,fold-masks")
    assert list(initializers(model)) == ["fc.weight"]
    assert initializers(model)["fc.weight"][0, 1] == 0


@pytest.mark.parametrize("mask", [None, np.ones((2, 2), bool)])
def test_apply_masks_leaves_weights_alone(mask: np.ndarray | None, tmp_path: Path) -> None:
    """Without a mask, under a mask of ones, and under one that is there."""
    path = tmp_path / "masks.npz"
    fixed_masks.write(path, {} if mask is None else {"fc.weight": mask})
    model = onnx_model(DENSE, fc__weight=W)
    before = content(model)
    (one,) = pipeline.parse(passes(path))
    assert one.rewrite(model) == 0
    assert content(model) == before


def test_apply_masks_twice_is_once(file: Path) -> None:
    model = onnx_model(DENSE, fc__weight=W)
    (one,) = pipeline.parse(passes(file))
    assert one.rewrite(model) == 1
    before = content(model)
    assert one.rewrite(model) == 0
    assert content(model) == before


def test_apply_masks_refuses(tmp_path: Path, file: Path) -> None:
    def error(kind: type[Exception], before: str, path: Path | str, **arrays: object) -> str:
        with pytest.raises(kind) as caught:
            pipeline.run(onnx_model(DENSE, **arrays), passes(Path(path), before) if path else "apply-masks")
        return str(caught.value)

    assert "there is no file of masks" in error(PassError, "", "", fc__weight=W)
    assert "binary weights are never zero" in error(
        UnsupportedError, "insert-quant{weights=binary inputs=none}", file, fc__weight=W
    )
    wide = error(DataError, "", file, fc__weight=np.zeros((2, 3)))
    assert "the mask of 'fc.weight' has the shape [2, 2], and the weight [2, 3]" in wide
    fixed_masks.write(tmp_path / "other.npz", {"fc.weights": MASK})
    other = error(DataError, "", tmp_path / "other.npz", fc__weight=W)
    assert "no layer has the weight 'fc.weights'; did you mean 'fc.weight'?" in other


def test_a_mask_file_that_promises_more_than_it_holds_is_refused(file: Path) -> None:
    """The size in the header is held against the file before anything is allocated."""
    with zipfile.ZipFile(file) as old:
        (info,) = old.infolist()
        member = old.read(info).replace(b"(2, 2)", b"(99,9)")
    with zipfile.ZipFile(file, "w") as new:
        new.writestr(info.filename, member)
    with pytest.raises(DataError, match="does not hold what its header says"):
        fixed_masks.read(file, onnx_model(DENSE, fc__weight=W).graph)


def test_calibration_keeps_what_layers_ask_for() -> None:
    """Every tensor of one layer and the weight of the other stay; the rest follows the numbers."""
    insert = "normalize,lower-gemm,insert-quant{weights=1,3,4 biases=1,3,4 inputs=1,6,1}"
    models = {}
    for keep in ("", ' keep="{\\"fc1\\": [\\"weight\\", \\"bias\\", \\"input\\"], \\"f*2\\": [\\"weight\\"]}"'):
        models[keep] = make_mlp()
        pipeline.run(models[keep], f"{insert},calibrate-quant{{samples=64{keep}}}")
    free, kept = (initializers(model) for model in models.values())
    names = [name for name in free if name.endswith(".scale")]
    stay = {"fc1.weight.quant.scale": 4, "fc1.bias.quant.scale": 4, "x.quant.scale": 1, "fc2.weight.quant.scale": 4}
    assert {name: kept[name].item() for name in stay} == {name: 2.0**-f for name, f in stay.items()}
    assert all(free[name] != kept[name] for name in stay)
    assert all(free[name] == kept[name] for name in names if name not in stay)
    assert len(names) == 6
    with pytest.raises(PassError, match="keep: "):
        pipeline.run(make_mlp(), "calibrate-quant{keep=3}")
