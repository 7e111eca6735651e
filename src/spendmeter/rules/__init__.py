"""Alert rules and Alertmanager routing as code."""
