"""TensorRT: the installed library, and the compilation of an ONNX graph to a plan."""
