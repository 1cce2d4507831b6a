"""The child process that does the heavy work; the only package that imports torch and its family."""
