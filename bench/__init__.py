"""Measures and shows the floors below: the demo on embedded data and the doctor."""
