"""What an index has on disk: catalog, log, checksums, lock, quota, vectors, states; see indexes/README.md."""
