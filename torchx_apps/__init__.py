"""TorchX components: each is the AppDef of one ``mtmh`` verb."""
