"""Files that are fetched once: wheels and data sets of the hub, checked by their digests."""
