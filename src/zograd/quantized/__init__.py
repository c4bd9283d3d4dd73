"""Models whose weights stay packed in 4 to 8 bits, trained through their scales."""
