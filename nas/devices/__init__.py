"""Where layers are measured: this machine, boards reached over SSH, a kit that somebody carries to them."""
