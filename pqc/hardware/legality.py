"""rules"""

import onnx_ir as ir


def check(model: ir.Model, io_type: str) -> None: ...
