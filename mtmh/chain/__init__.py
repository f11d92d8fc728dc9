"""All stages of a recipe, one after another, as jobs of a scheduler: what is unchanged is skipped, gates stop it."""
