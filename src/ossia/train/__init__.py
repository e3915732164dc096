"""Training, in plain PyTorch; needs `pip install 'ossia[train]'`."""
