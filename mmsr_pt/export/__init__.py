"""Both towers as ONNX, for serving without torch."""
