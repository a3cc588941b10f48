"""Inference runtimes: how a layer or a network becomes something that can be timed."""
