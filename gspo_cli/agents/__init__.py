"""Agents of users as they are: they talk to an OpenAI-compatible endpoint, and what is sampled for them is
what is trained."""
