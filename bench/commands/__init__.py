"""Console scripts of this floor. They load nothing heavy before they know what to do: `--help` is instant."""
