"""Documents as people have them: files of many kinds become `Document`s that say where in the file they are from."""
