"""What stands between the CUDA backend and the GPU: sources, their compiler, and the driver that launches them."""
