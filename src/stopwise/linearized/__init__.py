"""What a Gram matrix says of training: spectrum, filters, paths, noise."""
