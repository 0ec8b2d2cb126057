"""The memory's operators as Triton kernels. Needs the extra `triton`; which kernel is what: kernels/__init__.py."""
