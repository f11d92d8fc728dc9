"""The dataset artifact and its readers: schema, item table, content store, histories, pairs, negatives, the loader."""
