"""Parity: whether an engine computes what PyTorch computes."""
