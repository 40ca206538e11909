"""The operators of pqc: what they compute, forward and backward, as ONNX functions."""
