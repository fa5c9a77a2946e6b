"""Training: one occluder per class, as the paper describes it."""
