"""Evaluation: every occluder on every picture, the store of answers, and the summary."""
