"""Model families: where a network comes from, one file each."""
