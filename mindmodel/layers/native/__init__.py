"""C++ kernels for the CPU: their sources, how they are built and loaded, and the Cells around them."""
