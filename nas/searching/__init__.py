"""A search around its trials: what was asked for, what is prepared, what is confirmed at the end."""
