"""What owns several runs: studies with their ledger, and ensembles."""
