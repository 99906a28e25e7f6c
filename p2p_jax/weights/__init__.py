"""Networks in the published PyTorch layout: files, what is in them, and what becomes of it."""
