"""Tools for every room: files that are written whole, errors of the command line."""
