"""A whole deployment on one machine, every party on a host of its own: for tests, measurements and trying things out."""
