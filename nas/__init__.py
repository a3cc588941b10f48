"""Hardware-aware architecture search for MobileNet-like networks."""
