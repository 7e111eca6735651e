"""Plans: what work was to take, and how that compares with what it took. Pure; the ledger keeps snapshots and usage."""
