"""Results as web pages of one file each, which open from disk without a network."""
