"""Work on the workers of a Dask cluster: which one, what a worker does, and the driver that hands out tasks."""
