"""Running shard tasks: plans, Dask, progress, and what is loaded once per process."""
