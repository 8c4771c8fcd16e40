"""The tasks that a recipe can name, one module each."""

__all__: list[str] = []
