"""Devices other than this machine: reached over SSH, or by a kit that somebody carries to them."""
