"""Programs for the server's own Python: sent over standard input, and importable there and here.

They need the standard library and asyncpg; Prefect is only looked at from outside, never imported.
"""
