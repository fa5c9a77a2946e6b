"""Measures and shows the floors below: benchmark suites, the demo on embedded data, and the doctor."""
