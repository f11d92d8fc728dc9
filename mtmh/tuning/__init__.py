"""Search for better settings on the end of the training period: ``mtmh tune``."""
