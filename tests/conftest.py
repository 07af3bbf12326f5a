"""Settings of every test: hypothesis draws the same examples each time, and a busy machine fails no deadline."""

from hypothesis import settings

settings.register_profile("mengya", deadline=None, derandomize=True, database=None)
settings.load_profile("mengya")
