"""An index: documents, vectors and states in one directory. `index.Index` is its front; `storage/` is on disk."""
