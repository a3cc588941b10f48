"""Measuring on a device, the table that comes of it, and how far a table can be trusted."""
