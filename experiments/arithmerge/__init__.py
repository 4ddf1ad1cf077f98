"""The ArithMerge benchmark."""
