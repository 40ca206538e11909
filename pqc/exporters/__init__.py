"""What runs in a framework's own Python to write its models as ONNX; nothing here imports the rest of pqc."""
