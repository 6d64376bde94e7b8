"""CPU kernels, compiled by Numba. Importing one of the modules needs the extra `numba`."""
