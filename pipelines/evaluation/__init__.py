"""Evaluation of speech: judges, metrics, the harness and its report, token statistics. Nothing here trains anything."""
