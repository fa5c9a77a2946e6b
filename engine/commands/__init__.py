"""The console scripts. They load nothing heavy before they know what to do, so that `--help` is instant."""
