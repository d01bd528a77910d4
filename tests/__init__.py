"""Tests, in three rings: pure cases, in-memory transitions, and the rehearsal cloud."""
