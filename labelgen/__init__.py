"""Videos to labelled HDF5 shards."""
