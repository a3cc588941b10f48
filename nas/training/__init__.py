"""How networks get their weights: inherited, shared, trained."""
