"""The HTTP service over a retriever."""
