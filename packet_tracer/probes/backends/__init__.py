"""Ways to attach to kernel functions, a module each; function_backends.py chooses among them."""
