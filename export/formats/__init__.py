"""Export formats: what the occluded classifier is written as, one file each."""
