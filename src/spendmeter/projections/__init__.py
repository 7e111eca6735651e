"""Projections: what the ledger holds, shown as metrics, spans, events, reports and comments. They read, and write no usage."""
