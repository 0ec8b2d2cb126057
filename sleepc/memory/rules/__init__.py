"""One rule a file, as RULE: what a memory holds, how a token changes it, how it is read; and once more, naively."""
