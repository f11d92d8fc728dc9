"""The share of the engagement head, chosen for each request by what feedback has shown."""
