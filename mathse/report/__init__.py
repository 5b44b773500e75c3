"""A run folder -> metrics.json, ledger.jsonl, the table over its stages, and report.html."""
