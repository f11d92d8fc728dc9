"""The MTMH model: nn.Modules and losses that any TorchRec stack can import."""
