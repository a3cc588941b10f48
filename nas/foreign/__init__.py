"""Networks that torchvision and timm build, beside the family: what is published, latency whole."""
