"""Certified tables from a part of the pairs: a random sample, estimates with an interval, and claims decided early."""
