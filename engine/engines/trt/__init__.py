"""TensorRT and TensorRT for RTX: the engine, and a plan at work on the GPU."""
