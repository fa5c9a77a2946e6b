"""The demo: two small CNNs on handwritten digits, from training to report."""
