"""The operators, a family a file; families never import each other."""
