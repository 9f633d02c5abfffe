"""One file per method; every public file is discovered by the registry."""
