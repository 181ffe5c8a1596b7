"""Tests of the core: values, clocks, JSON, errors and loops."""
