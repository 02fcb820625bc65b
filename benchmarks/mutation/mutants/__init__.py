"""Making mutants, and running tests with them."""
