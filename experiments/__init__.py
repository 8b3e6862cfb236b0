"""Comparisons that decided something about GritRAG, each as a command that can be run again.

`python -m experiments.NAME --help`. They import the package, and the package does not know them.
"""
