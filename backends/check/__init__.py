"""The check of what a target wrote: both runtimes read the same, and what they give is compared."""
