"""Indexing: the writer of postings, and of what is computed from them."""
