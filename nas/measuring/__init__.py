"""Rounds of measurements and their conditions: runs on boards that have only numpy and a runtime."""
