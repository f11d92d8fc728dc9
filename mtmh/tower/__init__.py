"""The trained item tower at work: embedding the catalogue, embedding what changed, exporting it for serving."""
