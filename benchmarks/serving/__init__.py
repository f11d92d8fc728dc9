"""Parts that the benchmarks of the HTTP service share: a recipe to serve, a service process, a small HTTP client."""
