"""What every room may use: files that are written whole, and errors of the command line."""
