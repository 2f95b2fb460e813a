"""Super-resolution networks as ONNX and StableHLO files."""
