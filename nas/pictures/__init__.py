"""Picture files: which there are in a folder, how they are decoded, and what a network is shown of them."""
