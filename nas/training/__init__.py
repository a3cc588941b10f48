"""The weights of networks: inherited, shared, trained."""
