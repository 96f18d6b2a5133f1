"""What holds for every test: none is judged by how long it takes."""

from hypothesis import settings

settings.register_profile("folkmoot", deadline=None)
settings.load_profile("folkmoot")
