"""Pure functions on arrays: they know nothing of files, data sets or device policy."""
