"""The command line client: an ordinary client of the API, with the official SDK underneath.

It starts in well under 0.3 s because nothing heavy (the SDK, rich) is imported before it is needed.
"""
